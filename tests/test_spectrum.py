"""Quantities of spectra, subspaces, cores of low rank, and decompositions of two inputs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal, tensors

from tl_bilinear import BilinearTensor, eigendecompose, singular_decompose

pytestmark = pytest.mark.one_major(4)


def close(value: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-10)


def symmetric(d: int) -> torch.Tensor:
    matrix = torch.randn(d, d, dtype=torch.float64)
    return (matrix + matrix.T) / 2


def of_matrix(matrix: torch.Tensor) -> BilinearTensor:
    """One output, whose Q is the matrix."""
    eye = torch.eye(len(matrix), dtype=matrix.dtype)
    return BilinearTensor(matrix, eye, torch.ones(1, len(matrix), dtype=matrix.dtype))


ONE = torch.ones(1, dtype=torch.float64)


@given(st.data(), st.sampled_from(["none", "traceless"]), st.booleans())
def test_a_core_of_low_rank_gives_the_whole_spectrum(data, gauge, one_factor):
    d, rank = 9, data.draw(st.sampled_from([1, 2]))
    left, right, out = (normal(data.draw, size, rank) for size in (d, d, 2))
    tensor = BilinearTensor(left, left if one_factor else right, out)
    u = normal(data.draw, 3, 2)
    found = eigendecompose(tensor, u, gauge=gauge)
    assert found.method.startswith("eigh of a core of size")
    shift = found.trace_shift[:, None, None] * torch.eye(d, dtype=torch.float64)
    rebuilt = (found.eigenvectors.mT * found.eigenvalues[:, None]) @ found.eigenvectors
    close(rebuilt + shift, tensor.interaction_matrix(u))
    gram = found.eigenvectors @ found.eigenvectors.mT
    close(gram, torch.eye(d, dtype=torch.float64).expand(3, d, d))
    for k in (1, 2 * rank, d):
        part = eigendecompose(tensor, u, k, gauge=gauge)
        close(part.eigenvalues.abs(), found.eigenvalues[:, :k].abs())
        rest = found.eigenvalues[:, k:].square().sum(-1).sqrt()
        close(part.error, rest)


def test_a_core_keeps_to_float32_weights_and_batches():
    tensor = BilinearTensor(*(torch.randn(size, 3) for size in (40, 40, 5)))
    u = torch.randn(2, 2, 5)
    found = eigendecompose(tensor, u, 4)
    assert found.eigenvectors.shape == (2, 2, 4, 40) and found.eigenvalues.dtype == torch.float32
    one = eigendecompose(tensor, u[1, 0], 4)
    torch.testing.assert_close(found.eigenvalues[1, 0], one.eigenvalues)
    none = eigendecompose(tensor, u[:0], 4)
    assert none.eigenvectors.shape == (0, 2, 4, 40) and none.error.shape == (0, 2)


def test_quantities_by_their_formulas():
    values = torch.tensor([4.0, -3, 2, 1, -1, 0]).double()
    found = eigendecompose(of_matrix(torch.diag(values)), ONE)
    close(found.truncation_curve(), values.square().cumsum(0) / 31)
    close(found.truncate(2).truncation_curve(), torch.tensor([16, 25]).double() / 31)
    close(found.effective_rank(), torch.tensor(11.0**2 / 31, dtype=torch.float64))
    centred = values - values.mean()
    close(found.kurtosis(), (centred**4).mean() / (centred**2).mean() ** 2)
    with pytest.raises(ValueError, match="2 of 6 pairs are kept here"):
        found.truncate(2).effective_rank()


def test_a_random_matrix_has_a_semicircle():
    found = [eigendecompose(of_matrix(symmetric(200)), ONE) for _ in range(10)]
    kurtosis = torch.stack([each.kurtosis() for each in found])
    assert abs(float(kurtosis.mean()) - 2) < 0.03
    assert sum(int(each.outliers()) for each in found) <= 1  # one matrix in fifty has one
    # (E|x|)^2 / E x^2 of a semicircle is 64 / (9 pi^2)
    assert all(abs(float(each.effective_rank()) / 200 - 0.7205) < 0.01 for each in found)


@pytest.mark.parametrize("k", [None, 9])
def test_planted_modes_are_the_outliers(k):
    d = 300
    modes = torch.linalg.qr(torch.randn(d, 5, dtype=torch.float64)).Q
    sizes = torch.tensor([9.0, -7, 5, -4, 3]).double() * (2 * d) ** 0.5
    matrix = symmetric(d) + (modes * sizes) @ modes.T
    found = eigendecompose(of_matrix(matrix), ONE, k)
    assert found.outliers() == 5
    assert found.truncation_curve()[4] < 0.99


def test_subspaces_of_repeated_eigenvalues():
    basis = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64)).Q
    values = torch.tensor([3.0, -2, 2, 2, 1, 1, 0]).double()
    found = eigendecompose(BilinearTensor(basis, basis, values[None]), ONE)
    spaces = {round(space.eigenvalue): space for space in found.subspaces()}
    assert sorted(spaces) == [1, 2] and all(space.whole for space in spaces.values())
    close(spaces[2].projector(), basis[:, 2:4] @ basis[:, 2:4].T)
    cut = {round(space.eigenvalue): space for space in found.truncate(4).subspaces()}
    assert list(cut) == [2] and not cut[2].whole  # -2 holds the same |lambda|
    assert (
        eigendecompose(of_matrix(torch.diag(torch.arange(1.0, 4)).double()), ONE).subspaces() == ()
    )


@given(st.data())
def test_two_inputs_have_singular_vectors(data):
    tensor = data.draw(tensors(same_legs=False))
    u = normal(data.draw, 2, tensor.d_out)
    found = singular_decompose(tensor, u)
    dense = torch.einsum("bo,oij->bij", u, tensor.to_dense())
    rebuilt = (found.left_vectors.mT * found.singular_values[:, None]) @ found.right_vectors
    close(rebuilt, dense)
    assert (found.error < 1e-9).all()
    for vectors in (found.left_vectors, found.right_vectors):
        eye = torch.eye(vectors.shape[1], dtype=torch.float64)
        close(vectors @ vectors.mT, eye.expand(2, *eye.shape))
    expected = torch.linalg.svdvals(dense)[:, : found.singular_values.shape[1]]
    close(found.singular_values, expected)
    largest = found.left_vectors.gather(-1, found.left_vectors.abs().argmax(-1, keepdim=True))
    assert (largest > 0).all()
    single = singular_decompose(tensor, u[0], 1)
    close(single.error, (expected[0].square().sum() - expected[0, 0] ** 2).clamp_min(0).sqrt())
    x, y = normal(data.draw, 3, tensor.d_left), normal(data.draw, 3, tensor.d_right)
    whole = singular_decompose(tensor, u[0])
    close(whole.contributions(x, y).sum(-1), tensor(x, y) @ u[0])
    close(whole.to_tensor()(x, y)[:, 0], tensor(x, y) @ u[0])
    close(whole.truncate(1).error, single.error)
    close(whole.norm, dense[0].norm())


def test_singular_decomposition_of_low_rank_in_batches():
    tensor = BilinearTensor(*(torch.randn(size, 4) for size in (30, 20, 3)))
    found = singular_decompose(tensor, torch.randn(2, 5, 3), 3)
    assert found.left_vectors.shape == (2, 5, 3, 30) and found.error.shape == (2, 5)
    assert (found.truncation_curve()[..., -1] <= 1).all() and (found.error > 0).all()
    same = BilinearTensor(torch.eye(3), torch.eye(3), torch.ones(1, 3), shared_input=False)
    assert singular_decompose(same, torch.ones(1)).degenerate_groups() == ((0, 1, 2),)
    assert singular_decompose(tensor, torch.randn(0, 3)).singular_values.shape == (0, 4)


def test_each_kind_of_tensor_is_sent_to_its_own_decomposition():
    one = BilinearTensor(*(torch.randn(size, 4) for size in (3, 3, 2)))
    two = one.compose(left=torch.randn(3, 3), right=torch.randn(3, 3))
    with pytest.raises(ValueError, match="use singular_decompose"):
        eigendecompose(two, torch.randn(2))
    with pytest.raises(ValueError, match="use eigendecompose"):
        singular_decompose(one, torch.randn(2))
    with pytest.raises(ValueError, match=r"min\(d_left, d_right, rank\) = 3, got 4"):
        singular_decompose(two, torch.randn(2), 4)
    with pytest.raises(ValueError, match="single direction"):
        singular_decompose(two, torch.randn(2, 2)).to_tensor()


@pytest.mark.parametrize("decompose", [eigendecompose, singular_decompose])
def test_bad_directions_are_refused(decompose):
    tensor = BilinearTensor(
        *(torch.randn(size, 4) for size in (3, 3, 2)),
        shared_input=decompose is eigendecompose,
    )
    with pytest.raises(ValueError, match="`u` must have 2 entries"):
        decompose(tensor, torch.randn(3))
    with pytest.raises(ValueError, match="`u` is zero: a direction needs"):
        decompose(tensor, torch.zeros(2))
    with pytest.raises(ValueError, match=r"`u` is zero at \[1\] of the batch"):
        decompose(tensor, torch.tensor([[1.0, 0], [0, 0]]))
    with pytest.raises(ValueError, match="not finite"):
        decompose(tensor, torch.tensor([1.0, float("inf")]))
    tensor.out[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        decompose(tensor, torch.ones(2))
