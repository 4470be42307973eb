"""Symmetric CP: the pair identity, planted tensors, monotone sweeps, sparse atoms, truncation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import normal, tensors

from tl_bilinear import BilinearTensor, cp_decompose, pair_squares
from tl_bilinear.decompositions.cp_fit import fit, fit_sparse

pytestmark = pytest.mark.one_major(4)


def close(value: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-10)


def random_tensor(d_out: int, d_in: int, rank: int) -> BilinearTensor:
    return BilinearTensor(
        *(torch.randn(size, rank, dtype=torch.float64) for size in (d_in, d_in, d_out))
    )


def symmetric_dense(tensor: BilinearTensor) -> torch.Tensor:
    dense = tensor.to_dense()
    return (dense + dense.mT) / 2


def planted(d_out: int, d_in: int, rank: int) -> tuple[BilinearTensor, torch.Tensor]:
    """Squares of known atoms, hidden in products of others: (a + b)(a - b) = a^2 - b^2."""
    atoms = torch.randn(d_in, rank, dtype=torch.float64)
    outputs = torch.randn(d_out, 2 * rank, dtype=torch.float64)
    others = atoms.roll(1, dims=1)
    left, right = torch.cat([atoms + others, atoms], 1), torch.cat([atoms - others, atoms], 1)
    return BilinearTensor(left, right, outputs), atoms.T


@settings(max_examples=15)
@given(st.data())
def test_pair_squares_are_the_tensor(data):
    tensor = data.draw(tensors())
    found = pair_squares(tensor)
    assert found.error == 0 and found.report is None
    assert len(found.atoms) == 2 * tensor.rank
    close(found.to_tensor().to_dense(), symmetric_dense(tensor))
    x = normal(data.draw, 4, tensor.d_in)
    close(found.contributions(x) @ found.outputs, tensor(x))
    assert (found.weights.diff() <= 1e-12).all()


def test_the_pair_of_one_neuron_is_its_eigenvectors():
    tensor = random_tensor(3, 6, 1)
    found = pair_squares(tensor)
    close(found.atoms[0] @ found.atoms[1], torch.zeros((), dtype=torch.float64))
    matrix = tensor.interaction_matrix(tensor.out[:, 0])
    for atom in found.atoms:
        value = atom @ matrix @ atom
        close(matrix @ atom, value * atom)


@pytest.mark.parametrize(("d_out", "d_in", "rank"), [(4, 6, 4), (6, 12, 10)])
def test_planted_atoms_are_found_from_random_starts(d_out, d_in, rank):
    tensor, atoms = planted(d_out, d_in, rank)
    found = cp_decompose(tensor, rank, from_pairs=False, restarts=2, seed=7)
    norm = symmetric_dense(tensor).norm()
    assert found.error < 1e-6 * norm
    atoms = atoms / atoms.norm(dim=1, keepdim=True)
    assert (found.atoms @ atoms.T).abs().max(0).values.min() > 1 - 1e-6
    assert found.report is not None and found.report.converged
    assert all(start.name.startswith("random") for start in found.report.starts)


def test_the_error_is_that_of_the_dense_tensors_and_no_sweep_raises_the_loss():
    tensor = random_tensor(6, 8, 20)
    found = cp_decompose(tensor, 5, restarts=2, sweeps=20)
    dense = symmetric_dense(tensor)
    close(found.error, (dense - found.to_tensor().to_dense()).norm())
    report = found.report
    assert report is not None
    assert all(
        after <= before for before, after in zip(report.losses, report.losses[1:], strict=False)
    )
    close(found.error**2 / 2, torch.tensor(report.losses[-1], dtype=torch.float64))
    assert report.losses[-1] < 0.9 * report.losses[0]
    assert report.winner == min(range(3), key=lambda i: report.starts[i].loss)
    assert [start.name for start in report.starts] == ["pairs", "random 0", "random 1"]
    assert not report.converged and report.starts[report.winner].sweeps == 20
    assert cp_decompose(tensor, 5, restarts=2, sweeps=20).error == found.error


def test_a_fit_ends_at_a_stationary_point():
    tensor = planted(5, 6, 3)[0] + 0.3 * random_tensor(5, 6, 9)
    found = cp_decompose(tensor, 3, restarts=1, tol=1e-14)
    dense = symmetric_dense(tensor)
    atoms = found.atoms.clone().requires_grad_()
    outputs = (found.weights[:, None] * found.outputs).requires_grad_()
    loss = (dense - torch.einsum("ro,ri,rj->oij", outputs, atoms, atoms)).square().sum() / 2
    loss.backward()
    assert atoms.grad is not None and outputs.grad is not None
    scale = float(dense.norm() ** 2)
    assert atoms.grad.abs().max() < 1e-5 * scale
    assert outputs.grad.abs().max() < 1e-5 * scale


def test_rank_one_is_the_best_rank_one():
    """With one output, the best square is the eigenvector of largest |lambda|."""
    tensor = random_tensor(1, 6, 9)
    found = cp_decompose(tensor, 1, restarts=4)
    values = torch.linalg.eigvalsh(symmetric_dense(tensor)[0]).abs()
    close(found.weights[0], values.max())


def test_as_many_squares_as_pairs_leave_nothing_out():
    tensor = random_tensor(4, 5, 3)
    found = cp_decompose(tensor, 6, restarts=1, sweeps=20)
    assert found.error < 1e-7 * tensor.norm()
    assert cp_decompose(tensor, 8, restarts=1, sweeps=20).error < 1e-7 * tensor.norm()


def test_low_rank_in_many_dimensions_is_fitted_in_few():
    tensor = random_tensor(30, 40, 3)
    found = cp_decompose(tensor, 6, restarts=1, sweeps=20)
    dense = symmetric_dense(tensor)
    assert found.atoms.shape == (6, 40) and found.outputs.shape == (6, 30)
    assert (dense - found.to_tensor().to_dense()).norm() < 1e-7 * dense.norm()


def test_truncation_is_exact_and_its_error_never_falls():
    tensor = random_tensor(5, 6, 12)
    dense = symmetric_dense(tensor)
    found = cp_decompose(tensor, 6, restarts=1, sweeps=50)
    errors = [float(found.error)]
    for k in range(5, 0, -1):
        cut = found.truncate(k)
        close(cut.error, (dense - cut.to_tensor().to_dense()).norm())
        atoms = torch.einsum("ri,rj->rij", cut.atoms, cut.atoms).flatten(1)
        best = torch.linalg.lstsq(atoms.T, dense.flatten(1).T)
        close(cut.error, (atoms.T @ best.solution - dense.flatten(1).T).norm())
        errors.append(float(cut.error))
    assert errors == sorted(errors)
    assert found.truncate(6) is found


def test_a_penalty_makes_atoms_sparse():
    """Sparse atoms in a tensor with noise: the penalty finds their zeros."""
    atoms = torch.zeros(10, 4, dtype=torch.float64)
    for r in range(4):
        atoms[torch.randperm(10)[:3], r] = 2 * torch.randn(3, dtype=torch.float64).sign()
    outputs = torch.linalg.qr(torch.randn(6, 4, dtype=torch.float64)).Q
    tensor = BilinearTensor(atoms, atoms, outputs) + 0.02 * random_tensor(6, 10, 30)
    dense = cp_decompose(tensor, 4, restarts=2, seed=3)
    sparse = cp_decompose(tensor, 4, l1=2.0, restarts=2, seed=3, tol=1e-12)
    assert (dense.atoms == 0).sum() == 0
    true = atoms.T / atoms.T.norm(dim=1, keepdim=True)
    match = (sparse.atoms @ true.T).abs().argmax(1)
    assert sorted(match.tolist()) == [0, 1, 2, 3]
    assert torch.equal(sparse.atoms != 0, true[match] != 0)
    assert sparse.error < 1.2 * dense.error
    report = sparse.report
    assert report is not None and "2 sum_ri |a_ri| over |c_r| <= 1" in report.objective
    rises = [b - a for a, b in zip(report.losses, report.losses[1:], strict=False)]
    assert max(rises) <= 1e-9 * report.losses[0]
    whole = symmetric_dense(tensor)
    close(sparse.error, (whole - sparse.to_tensor().to_dense()).norm())


def test_the_penalised_objective_is_what_it_says():
    tensor = random_tensor(4, 5, 8)
    dense = symmetric_dense(tensor)
    squared = float(dense.square().sum())
    start = fit(tensor, squared, torch.randn(5, 3, dtype=torch.float64), 30, 1e-10)
    found = fit_sparse(tensor, squared, start, 2.0, 40, 1e-10)
    rebuilt = torch.einsum("or,ir,jr->oij", found.outputs, found.atoms, found.atoms)
    objective = (dense - rebuilt).square().sum() / 2 + 2.0 * found.atoms.abs().sum()
    close(torch.tensor(found.losses[-1], dtype=torch.float64), objective)
    assert (found.outputs.norm(dim=0) <= 1 + 1e-12).all()


def test_a_penalty_that_is_too_large_leaves_nothing():
    tensor = random_tensor(4, 5, 8)
    found = cp_decompose(tensor, 2, l1=1e6, restarts=1, sweeps=300)
    assert found.weights.abs().sum() == 0
    close(found.error, symmetric_dense(tensor).norm())


def test_atoms_that_share_a_line_are_a_subspace():
    atoms = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q[:, :3]
    outputs = torch.eye(4, dtype=torch.float64)[:, [0, 0, 1]] * torch.tensor([3.0, 2.0, 1.0])
    found = pair_squares(BilinearTensor(atoms, atoms, outputs)).truncate(3)
    assert found.degenerate_groups() == ((0, 1),)
    (plane,) = found.subspaces()
    close(plane.T @ plane, atoms[:, :2] @ atoms[:, :2].T)
    one_output = cp_decompose(random_tensor(1, 4, 5), 2, restarts=1)
    assert one_output.degenerate_groups() == ((0, 1),)
    assert cp_decompose(random_tensor(5, 6, 9), 3, restarts=1, sweeps=20).degenerate_groups() == ()


def test_bad_input_is_refused():
    tensor = random_tensor(3, 4, 5)
    cases = {
        "`rank` must be at least 1, got 0": {"rank": 0},
        "`sweeps` must be at least 1": {"rank": 2, "sweeps": 0},
        "at least one start": {"rank": 2, "restarts": 0, "from_pairs": False},
        "`l1` and `tol` must be finite": {"rank": 2, "l1": -1.0},
    }
    for words, arguments in cases.items():
        with pytest.raises(ValueError, match=words):
            cp_decompose(tensor, **arguments)
    with pytest.raises(ValueError, match="not finite"):
        cp_decompose(BilinearTensor(tensor.left / 0.0, tensor.right, tensor.out), 2)
    two_spaces = BilinearTensor(torch.randn(3, 4), torch.randn(5, 4), torch.randn(2, 4))
    with pytest.raises(ValueError, match="two different spaces"):
        cp_decompose(two_spaces, 2)
    with pytest.raises(ValueError, match="two different spaces"):
        pair_squares(two_spaces)
    with pytest.raises(ValueError, match="`tensor` is empty"):
        cp_decompose(BilinearTensor(*(torch.randn(3, 0) for _ in range(3))), 2)
    with pytest.raises(ValueError, match="`k` must be between 1 and 10"):
        pair_squares(tensor).truncate(11)
