"""The Krylov method against eigh: with a gap and without, repeated, two-sided, deficient, zero."""

from typing import Any

import pytest
import torch

from tl_bilinear import BilinearTensor, Eigendecomposition, eigendecompose
from tl_bilinear.decompositions import eigensolvers
from tl_bilinear.decompositions.interaction_operator import InteractionOperator, interaction_matrix
from tl_bilinear.decompositions.krylov import largest_eigenpairs

pytestmark = pytest.mark.one_major(4)

ONE = torch.ones(1, dtype=torch.float64)


def with_spectrum(values: torch.Tensor, dtype: torch.dtype = torch.float64) -> BilinearTensor:
    """One output whose Q has these eigenvalues, in a random basis."""
    basis = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64)).Q
    return BilinearTensor(basis, basis.clone(), values[None].double()).to(dtype)


def two_sided(d: int, large: int, ratio: float) -> torch.Tensor:
    """Large eigenvalues of both signs above a bulk in [-1, 1]."""
    signs = torch.tensor([1.0, -1.0]).repeat(large)[:large]
    sizes = ratio * torch.linspace(2, 1, large)
    return torch.cat([signs * sizes, torch.linspace(-1, 1, d - large)])


def agree(found: Eigendecomposition, tensor: BilinearTensor, u: torch.Tensor, rtol: float) -> None:
    """Values, and residuals as claimed, against the dense matrix."""
    matrix = tensor.interaction_matrix(u).double()
    values = torch.linalg.eigvalsh(matrix)
    values = values[values.abs().argsort(descending=True)][: len(found.eigenvalues)]
    scale = float(values[0].abs())
    torch.testing.assert_close(
        found.eigenvalues.double().abs(), values.abs(), rtol=rtol, atol=1e-12
    )
    vectors = found.eigenvectors.double()
    residuals = (vectors @ matrix - found.eigenvalues.double()[:, None] * vectors).norm(dim=-1)
    rounding = 1e-12 if tensor.dtype == torch.float64 else 1e-6
    assert (residuals <= found.residuals.double() + rounding * scale).all()
    eye = torch.eye(len(values), dtype=torch.float64)
    torch.testing.assert_close(
        vectors @ vectors.T, eye, rtol=0, atol=1e-5 if rtol > 1e-9 else 1e-12
    )


@pytest.mark.parametrize("method", ["auto", "krylov"])
def test_both_ends_of_a_spectrum_with_a_gap(method):
    tensor = with_spectrum(two_sided(600, 8, 5.0))
    found = eigendecompose(tensor, ONE, 8, method=method)
    assert found.method == "krylov" and not found.by_eigh
    agree(found, tensor, ONE, 1e-12)
    assert (found.residuals <= 1e-8 * found.eigenvalues.abs()).all()
    assert sorted(found.eigenvalues.sign().tolist()) == [-1.0] * 4 + [1.0] * 4
    exact = eigendecompose(tensor, ONE, 8, method="eigh")
    assert exact.method == "eigh" and exact.by_eigh and exact.certified
    torch.testing.assert_close(found.error, exact.error, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.norm, exact.norm, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.truncate(3).error, exact.truncate(3).error, rtol=1e-9, atol=0)
    overlap = (found.eigenvectors @ exact.eigenvectors.T).diagonal()
    torch.testing.assert_close(overlap, torch.ones(8, dtype=torch.float64), rtol=0, atol=1e-10)


def test_without_a_gap_eigh_takes_over_and_says_so(monkeypatch):
    tensor = with_spectrum(torch.linspace(-1, 1, 300))
    monkeypatch.setattr(eigensolvers, "_promises", lambda *_: True)  # else it is not even tried
    found = eigendecompose(tensor, ONE, 4)
    assert found.method.startswith("eigh (Krylov did not converge to 1e-08 in 75 vectors: no gap")
    assert found.by_eigh and found.certified
    agree(found, tensor, ONE, 1e-12)
    plain = eigendecompose(tensor, ONE, 4, method="eigh")
    torch.testing.assert_close(found.error, plain.error)
    # asked for, it goes on to the whole space
    assert eigendecompose(tensor, ONE, 4, method="krylov").method == "krylov"


def test_a_batch_falls_back_row_by_row(monkeypatch):
    basis = torch.linalg.qr(torch.randn(240, 240, dtype=torch.float64)).Q
    spectra = torch.stack([two_sided(240, 6, 80.0), torch.linspace(-1, 1, 240)]).double()
    tensor = BilinearTensor(basis, basis.clone(), spectra)
    u = torch.eye(2, dtype=torch.float64)[[0, 1, 0]] * torch.tensor([[1.0], [2.0], [-3.0]]).double()
    monkeypatch.setattr(eigensolvers, "_promises", lambda *_: True)
    found = eigendecompose(tensor, u, 6)
    assert found.by_eigh.tolist() == [False, True, False]
    assert found.method.startswith("krylov, eigh for 1 of 3 (Krylov did not converge")
    exact = eigendecompose(tensor, u, 6, method="eigh")
    torch.testing.assert_close(found.eigenvalues.abs(), exact.eigenvalues.abs())
    torch.testing.assert_close(found.error, exact.error, rtol=1e-9, atol=0)
    small = eigendecompose(tensor, u, 6, work_bytes=1)  # a chunk per direction
    torch.testing.assert_close(small.eigenvalues.abs(), exact.eigenvalues.abs())


@pytest.mark.parametrize("copies", [3, 30])
def test_repeated_eigenvalues_beyond_the_block(copies):
    """A block that is k wide at least finds k copies of 5, or all of 5 and then the next."""
    values = torch.cat([torch.full((copies,), 5.0), torch.linspace(-1, 1, 200 - copies)])
    values[-1], values[-2] = -3.0, 2.5
    tensor = with_spectrum(values)
    found = eigendecompose(tensor, ONE, 5, method="krylov")
    agree(found, tensor, ONE, 1e-12)
    (group,) = found.subspaces()
    assert group.indices == tuple(range(min(copies, 5)))
    assert group.whole == (copies == 3)
    inside = tensor.interaction_matrix(ONE) @ group.projector()
    torch.testing.assert_close(inside, 5 * group.projector(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_deficient_matrices(rank):
    values = torch.cat([torch.arange(1.0, rank + 1), torch.zeros(60 - rank)])
    tensor = with_spectrum(values)
    found = eigendecompose(tensor, ONE, 5, method="krylov")
    agree(found, tensor, ONE, 1e-12)
    assert found.error < 1e-12
    assert rank == 0 or found.truncate(rank).certified


def test_one_by_one():
    tensor = BilinearTensor(*(torch.tensor([[2.0]]).double(),) * 3)
    found = eigendecompose(tensor, ONE, 1, method="krylov")
    torch.testing.assert_close(found.eigenvalues, torch.tensor([8.0]).double())
    assert found.eigenvectors.tolist() == [[1.0]]


def test_certified_where_the_rest_is_small_and_not_where_it_is_not():
    few = with_spectrum(torch.cat([torch.tensor([9.0, -8.0, 7.0]), 0.1 * torch.randn(200)]))
    assert eigendecompose(few, ONE, 3, method="krylov").certified
    bulk = with_spectrum(torch.cat([torch.tensor([9.0, -8.0, 7.0]), 2 * torch.randn(200)]))
    assert not eigendecompose(bulk, ONE, 3, method="krylov").certified


@pytest.mark.parametrize("gauge", ["none", "traceless"])
def test_float32_weights_and_gauges(gauge):
    values = two_sided(400, 6, 8.0) + 3.0  # the trace is far from zero
    tensor = with_spectrum(values, torch.float32)
    u = torch.ones(1)
    for dtype in (torch.float64, torch.float32):
        found = eigendecompose(tensor, u, 6, gauge=gauge, method="krylov", dtype=dtype)
        exact = eigendecompose(tensor, u, 6, gauge=gauge, method="eigh")
        assert found.eigenvalues.dtype == torch.float32
        torch.testing.assert_close(found.eigenvalues, exact.eigenvalues, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.trace_shift, exact.trace_shift, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.error, exact.error, rtol=1e-4, atol=0)
        assert (found.residuals <= 1.1e-5 * found.eigenvalues.abs()).all()


def test_many_directions_are_summed_up_by_the_gram_route(monkeypatch):
    """|Q|_F^2 = w^T K w for all directions at once; a small rest is computed from Q instead."""
    basis = torch.linalg.qr(torch.randn(48, 48, dtype=torch.float64)).Q
    spectra = torch.stack([two_sided(48, 4, 9.0).double(), torch.zeros(48).double()])
    spectra[1, :4] = torch.tensor([4.0, 3, -2, 1])
    tensor = BilinearTensor(basis, basis.clone(), spectra)
    u = torch.tensor([[1.0, 0], [0, 1], [1, 1], [2, 0], [0, 3]]).double()
    calls = []
    squared = eigensolvers._squared_norms
    monkeypatch.setattr(
        eigensolvers, "_squared_norms", lambda *given: calls.append(1) or squared(*given)
    )
    monkeypatch.setattr(InteractionOperator, "expect", lambda *_: None)  # stays factored
    for gauge in ("none", "traceless"):
        found = eigendecompose(tensor, u, 4, method="krylov", gauge=gauge)
        exact = eigendecompose(tensor, u, 4, method="eigh", gauge=gauge)
        torch.testing.assert_close(found.error, exact.error, rtol=1e-9, atol=1e-10)
    assert calls == [1, 1]


def test_the_operator_is_the_matrix_factored_or_built():
    tensor = BilinearTensor(*(torch.randn(n, 700, dtype=torch.float64) for n in (20, 20, 3)))
    weights, shift = torch.randn(3, 700).double(), torch.randn(3).double()
    operator = InteractionOperator(tensor, weights, shift)
    x = torch.randn(2, 4, 20, dtype=torch.float64)
    eye = torch.eye(20, dtype=torch.float64)
    dense = [interaction_matrix(tensor, weights[i]) - shift[i] * eye for i in (0, 2)]
    unsymmetrised = (tensor.left * weights[0]) @ tensor.right.T
    torch.testing.assert_close(dense[0], (unsymmetrised + unsymmetrised.T) / 2 - shift[0] * eye)
    expected = torch.stack([v @ matrix for v, matrix in zip(x, dense, strict=True)])
    torch.testing.assert_close(operator([0, 2], x), expected)
    assert not operator.matrices
    operator.expect([0, 2], 10**6, 4)
    assert sorted(operator.matrices) == [0, 2]
    torch.testing.assert_close(operator([0, 2], x), expected)


def test_a_missed_eigenvalue_is_not_certified_away():
    """The bound is honest: a start that cannot see the largest eigenvector gives wrong pairs with
    tiny residuals, which only the norm accounting can refuse."""
    values = torch.tensor([5.0, 3, 2, 1, 0.5, 0.2]).double()
    matrix = torch.diag(values)
    start = torch.zeros(1, 1, 6, dtype=torch.float64)
    start[0, 0, 1] = 1.0  # an eigenvector, not the largest
    found = largest_eigenpairs(lambda rows, v: v @ matrix, start, 1, tolerance=1e-8, max_vectors=6)
    assert found.converged and found.values[0, 0] == 3.0 and found.residuals[0, 0] < 1e-12
    rest = matrix.square().sum().sqrt() ** 2 - found.values[0, 0] ** 2
    assert rest.sqrt() > found.values[0, 0].abs()


def test_options_are_checked(unchecked):
    tensor = with_spectrum(torch.arange(1.0, 7.0))
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"method": "lanczos"}, "`method` must be"),
        ({"dtype": torch.float16}, "`dtype` must be torch.float32 or torch.float64"),
        ({"tolerance": 0.0}, "`tolerance` must be between 0 and 1"),
    )
    for wrong, words in refused:
        with pytest.raises(ValueError, match=words):
            eigendecompose(tensor, ONE, 2, **wrong)
    with pytest.raises(ValueError, match="between k = 3 and d = 6 wide, got 2"):
        largest_eigenpairs(
            lambda rows, v: v, torch.ones(1, 2, 6).double(), 3, tolerance=0.1, max_vectors=6
        )
    everything = eigendecompose(tensor, ONE, method="krylov")
    assert everything.method == "eigh (all pairs were asked for: `k` is None)"


def test_gradients_take_eigh():
    tensor = with_spectrum(torch.arange(1.0, 7.0))
    leaf = tensor.out.clone().requires_grad_()

    def values(out):
        found = eigendecompose(BilinearTensor(tensor.left, tensor.right, out), ONE, 3)
        return found.eigenvalues, found.eigenvectors.square()

    assert torch.autograd.gradcheck(values, leaf)
    with pytest.raises(ValueError, match='through `method="eigh"` only'):
        eigendecompose(BilinearTensor(tensor.left, tensor.right, leaf), ONE, 3, method="krylov")
