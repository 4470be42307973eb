"""Shared subspaces, reconstruction from spanning directions, and differences of checkpoints."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import normal, tensors

from tl_bilinear import (
    BilinearTensor,
    difference_modes,
    eigendecompose,
    reconstruct,
    shared_subspace,
)

pytestmark = pytest.mark.one_major(4)


def close(value: torch.Tensor, expected: torch.Tensor) -> None:
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9 * scale + 1e-12)


def random_tensor(d_out: int, d_in: int, rank: int) -> BilinearTensor:
    return BilinearTensor(
        *(torch.randn(size, rank, dtype=torch.float64) for size in (d_in, d_in, d_out))
    )


def matrices(tensor: BilinearTensor, u: torch.Tensor) -> torch.Tensor:
    dense = torch.einsum("co,oij->cij", u, tensor.to_dense())
    return (dense + dense.mT) / 2


@settings(max_examples=15)
@given(st.data())
def test_the_subspace_is_that_of_the_sum_of_squares(data):
    tensor = data.draw(tensors(d_in=4))
    u = normal(data.draw, 3, tensor.d_out)
    dense = matrices(tensor, u)
    values = torch.linalg.eigvalsh((dense @ dense).sum(0)).flip(0)
    found = shared_subspace(tensor, u)
    close(found.eigenvalues, values)
    close(found.basis @ found.basis.T, torch.eye(4, dtype=torch.float64))
    assert found.error == 0 and (found.completeness == 1).all()
    close(found.to_tensor().symmetrized().to_dense(), dense)
    for k in range(1, 4):
        cut = found.truncate(k)
        projector = cut.basis.T @ cut.basis
        held = projector @ dense @ projector
        torch.testing.assert_close(cut.error, (dense - held).norm(), rtol=1e-9, atol=1e-9)
        share = held.square().sum((1, 2)) / dense.square().sum((1, 2))
        close(cut.completeness, share)
        close(cut.to_tensor().symmetrized().to_dense(), held)
        close(shared_subspace(tensor, u, k).completeness, share)


def test_all_outputs_are_the_directions_of_none_and_errors_fall():
    tensor = random_tensor(6, 5, 9)
    whole = shared_subspace(tensor)
    dense = matrices(tensor, torch.eye(6, dtype=torch.float64))
    close(whole.eigenvalues, torch.linalg.eigvalsh((dense @ dense).sum(0)).flip(0))
    errors = [float(whole.truncate(k).error) for k in range(1, 6)]
    assert errors == sorted(errors, reverse=True) and errors[-1] == 0


def test_one_plane_is_found(monkeypatch):
    plane = torch.linalg.qr(torch.randn(8, 2, dtype=torch.float64)).Q
    tensor = random_tensor(5, 2, 7).change_basis(plane.T)
    found = shared_subspace(tensor, k=2)
    close(found.basis.T @ found.basis, plane @ plane.T)
    assert found.error < 1e-9 * tensor.norm() and (found.completeness > 1 - 1e-9).all()
    full = shared_subspace(tensor)
    assert full.degenerate_groups() == (tuple(range(2, 8)),)
    cut = shared_subspace(random_tensor(5, 6, 7), k=2)
    monkeypatch.setattr("tl_bilinear.decompositions.subspace.slices_are_cheap", lambda _: False)
    close(shared_subspace(cut.tensor, k=2).error, cut.error)


def test_a_direction_that_reads_nothing_is_complete():
    tensor = random_tensor(3, 4, 5)
    found = shared_subspace(tensor, torch.zeros(2, 3, dtype=torch.float64) + 0.0, 2)
    assert (found.completeness == 1).all()


@settings(max_examples=15)
@given(st.data())
def test_directions_that_span_give_the_tensor_back(data):
    tensor = data.draw(tensors())
    extra = data.draw(st.integers(0, 2))
    u = normal(data.draw, tensor.d_out + extra, tensor.d_out)
    found = reconstruct(tensor, u)
    dense = matrices(tensor, torch.eye(tensor.d_out, dtype=torch.float64))
    assert found.spans and len(found.missing) == 0
    scale = float(dense.norm()) * found.condition
    torch.testing.assert_close(
        found.to_tensor().to_dense(), dense, rtol=1e-9, atol=1e-12 * scale + 1e-12
    )
    assert found.error <= 1e-11 * scale
    given_matrices = reconstruct(tensor, u, matrices(tensor, u))
    torch.testing.assert_close(
        given_matrices.to_tensor().to_dense(), dense, rtol=1e-9, atol=1e-12 * scale + 1e-12
    )


def test_fewer_directions_leave_out_what_they_do_not_reach():
    tensor = random_tensor(5, 4, 7)
    u = torch.randn(3, 5, dtype=torch.float64)
    u = torch.cat([u, u[:1] + u[1:2]])  # four rows, rank three
    found = reconstruct(tensor, u)
    assert not found.spans and found.missing.shape == (2, 5)
    close(found.missing @ u.T, torch.zeros(2, 4, dtype=torch.float64))
    dense = matrices(tensor, torch.eye(5, dtype=torch.float64))
    projector = torch.linalg.pinv(u) @ u
    expected = torch.einsum("op,pij->oij", projector, dense)
    close(found.to_tensor().to_dense(), expected)
    close(found.error, (dense - expected).norm())


def test_truncated_parts_are_measured_exactly():
    tensor = random_tensor(4, 5, 8)
    u = torch.randn(6, 4, dtype=torch.float64)
    dense = matrices(tensor, torch.eye(4, dtype=torch.float64))
    whole = reconstruct(tensor, u)
    for k in range(1, 6):
        cut = whole.truncate(k)
        expected = (dense - cut.to_tensor().to_dense()).norm()
        torch.testing.assert_close(cut.error, expected, rtol=1e-9, atol=1e-10)
        from_eigen = reconstruct(tensor, u, eigendecompose(tensor, u, k))
        torch.testing.assert_close(from_eigen.error, cut.error, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(
            reconstruct(tensor, u, k=k).error, cut.error, rtol=1e-9, atol=1e-10
        )
    assert whole.error < 1e-10 * dense.norm()


def test_float32_is_kept_where_it_was_given():
    tensor = random_tensor(4, 5, 8).to(torch.float32)
    found = reconstruct(tensor, torch.randn(6, 4))
    assert found.to_tensor().out.dtype == found.error.dtype == torch.float32
    subspace = shared_subspace(tensor, torch.randn(6, 4), 2)
    assert subspace.basis.dtype == subspace.truncate(1).error.dtype == torch.float32


@pytest.mark.parametrize("gauge", ["none", "traceless"])
@settings(max_examples=15)
@given(data=st.data())
def test_modes_of_a_difference(gauge, data):
    a = data.draw(tensors(d_in=4))
    b = BilinearTensor(*(normal(data.draw, size, 3) for size in (4, 4, a.d_out)))
    u = normal(data.draw, a.d_out)
    found = difference_modes(a, b, u, gauge=gauge)
    q_a, q_b = (matrices(tensor, u[None])[0] for tensor in (a, b))
    if gauge == "traceless":
        eye = torch.eye(4, dtype=torch.float64)
        q_a, q_b = (q - q.trace() / 4 * eye for q in (q_a, q_b))
    values = torch.linalg.eigvalsh(q_a - q_b)
    close(found.eigenvalues.sort().values, values)
    close(found.in_a - found.in_b, found.eigenvalues)
    close(found.norm_a, q_a.norm())
    close(found.norm_b, q_b.norm())
    close(found.shares.sum(), torch.ones((), dtype=torch.float64))
    x = normal(data.draw, 3, 4)
    close(found.to_tensor()(x)[:, 0], (a(x) - b(x)) @ u)
    cut = found.truncate(2)
    close(cut.error, values.abs().sort().values[:2].norm())
    close(cut.shares, found.shares[:2])
    assert cut.in_a.shape == cut.in_b.shape == (2,)


def test_one_changed_mode_is_the_change():
    before = random_tensor(3, 6, 9)
    v = torch.linalg.qr(torch.randn(6, 1, dtype=torch.float64)).Q
    u = torch.tensor([1.0, 0, 0], dtype=torch.float64)
    after = before + BilinearTensor(v, v, 2.5 * u[:, None])
    found = difference_modes(after, before, u)
    close(found.eigenvalues[0], torch.tensor(2.5, dtype=torch.float64))
    assert (found.eigenvectors[0] @ v).abs() > 1 - 1e-9 and found.shares[0] > 1 - 1e-9
    assert found.degenerate_groups() == (tuple(range(1, 6)),)
    batch = difference_modes(after, before, torch.eye(3, dtype=torch.float64), 2)
    close(batch.eigenvalues[0], found.eigenvalues[:2])
    assert batch.shares.shape == (3, 2)
    same = difference_modes(before, before, u)
    assert same.shares.isfinite().all()


def test_bad_input_is_refused():
    tensor = random_tensor(3, 4, 5)
    eye = torch.eye(3, dtype=torch.float64)
    nan = torch.full((1, 3), float("nan"), dtype=torch.float64)
    wrong = torch.randn(2, 4, dtype=torch.float64)
    for call in (
        lambda u: shared_subspace(tensor, u),
        lambda u: reconstruct(tensor, u),
        lambda u: difference_modes(tensor, tensor, u),
    ):
        with pytest.raises(ValueError, match="`u` must have 3 entries on its last axis"):
            call(wrong)
        with pytest.raises(ValueError, match="`u` must have 3 entries .* at least one direction"):
            call(torch.zeros(0, 3, dtype=torch.float64))
        with pytest.raises(ValueError, match="not finite"):
            call(nan)
    with pytest.raises(ValueError, match="`k` must be between 1 and 4"):
        shared_subspace(tensor, eye, 5)
    with pytest.raises(ValueError, match="`k` must be between 1 and 4"):
        reconstruct(tensor, eye, k=5)
    with pytest.raises(ValueError, match="`k` must be between 1 and d_in = 4, got 5"):
        difference_modes(tensor, tensor, eye, 5)
    with pytest.raises(ValueError, match="read and write the same spaces"):
        difference_modes(tensor, random_tensor(3, 5, 5), eye)
    with pytest.raises(ValueError, match="decomposes other directions than `u`"):
        reconstruct(tensor, eye, eigendecompose(tensor, 2 * eye))
    with pytest.raises(ValueError, match='decompose with gauge="none"'):
        reconstruct(tensor, eye, eigendecompose(tensor, eye, gauge="traceless"))
    with pytest.raises(ValueError, match="reads a space of 5 dimensions"):
        reconstruct(tensor, eye, eigendecompose(random_tensor(3, 5, 5), eye))
    two_spaces = BilinearTensor(torch.randn(3, 4), torch.randn(5, 4), torch.randn(2, 4))
    for call in (shared_subspace, lambda t: reconstruct(t, torch.randn(2, 2))):
        with pytest.raises(ValueError, match="two different spaces"):
            call(two_spaces)


def test_matrices_of_another_shape_are_refused(unchecked):
    tensor = random_tensor(3, 4, 5)
    eye = torch.eye(3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"one \[4, 4\] matrix for each of 3 directions"):
        reconstruct(tensor, eye, torch.randn(2, 4, 4))
    with pytest.raises(ValueError, match="`u` must be directions as rows"):
        reconstruct(tensor, eye[0])
