"""Eigendecomposition: reconstruction, order, signs, gauges, degenerate groups."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal, tensors

from tl_bilinear import BilinearTensor, eigendecompose

pytestmark = pytest.mark.one_major(4)


def close(value: torch.Tensor, expected: torch.Tensor, name: str = "") -> None:
    torch.testing.assert_close(
        value, expected, rtol=1e-9, atol=1e-10, msg=lambda message: f"{name} {message}"
    )


@given(st.data(), st.sampled_from(["none", "traceless"]))
def test_sum_of_all_modes_is_the_function(data, gauge):
    tensor = data.draw(tensors())
    u = normal(data.draw, tensor.d_out)
    x = normal(data.draw, 4, tensor.d_in)
    eigen = eigendecompose(tensor, u, gauge=gauge)
    total = eigen.contributions(x).sum(-1) + eigen.trace_shift * x.square().sum(-1)
    close(total, tensor(x) @ u)
    close(eigen.to_tensor()(x)[:, 0], tensor(x) @ u)
    assert eigen.error == 0
    matrix = eigen.to_tensor().to_dense()[0] - eigen.trace_shift * torch.eye(
        tensor.d_in, dtype=torch.float64
    )
    close(eigen.norm, matrix.norm())


@given(st.data())
def test_order_signs_and_orthonormality(data):
    tensor = data.draw(tensors(d_in=5))
    eigen = eigendecompose(tensor, normal(data.draw, 3, tensor.d_out))
    sizes = eigen.eigenvalues.abs()
    assert (sizes[:, :-1] >= sizes[:, 1:] - 1e-12).all()
    gram = eigen.eigenvectors @ eigen.eigenvectors.mT
    close(gram, torch.eye(5, dtype=torch.float64).expand(3, 5, 5))
    largest = eigen.eigenvectors.gather(-1, eigen.eigenvectors.abs().argmax(-1, keepdim=True))
    assert (largest > 0).all()


@given(st.data())
def test_batch_equals_one_by_one(data):
    tensor = data.draw(tensors(d_in=4))
    u = normal(data.draw, 3, tensor.d_out)
    batch = eigendecompose(tensor, u, 2)
    for row in range(3):
        single = eigendecompose(tensor, u[row], 2)
        close(batch.eigenvalues[row], single.eigenvalues)


def test_the_spectrum_is_that_of_the_symmetrised_matrix():
    """papers.md 3.8: reading one triangle of an unsymmetrised Q gives another spectrum."""
    tensor = BilinearTensor(*(torch.randn(size, 7, dtype=torch.float64) for size in (6, 6, 3)))
    u = torch.randn(3, dtype=torch.float64)
    dense = torch.einsum("o,oij->ij", u, tensor.to_dense())
    wrong = torch.linalg.eigvalsh(dense)
    right = torch.linalg.eigvalsh((dense + dense.T) / 2)
    found = eigendecompose(tensor, u).eigenvalues.sort().values
    close(found, right)
    assert not torch.allclose(found, wrong)


def test_truncation_error_is_what_is_left_out_and_falls_with_k():
    tensor = BilinearTensor(*(torch.randn(size, 9, dtype=torch.float64) for size in (6, 6, 3)))
    u = torch.randn(3, dtype=torch.float64)
    eigen = eigendecompose(tensor, u)
    errors = []
    for k in range(1, 7):
        kept = eigen.truncate(k)
        dense = kept.to_tensor().to_dense()[0]
        expected = (tensor.interaction_matrix(u) - dense).norm()
        close(kept.error, expected)
        errors.append(float(kept.error))
    assert errors == sorted(errors, reverse=True)
    torch.testing.assert_close(eigendecompose(tensor, u, 2).error, eigen.truncate(2).error)


def test_gauges_differ_by_a_multiple_of_the_identity():
    tensor = BilinearTensor(*(torch.randn(size, 9, dtype=torch.float64) for size in (6, 6, 3)))
    u = torch.randn(3, dtype=torch.float64)
    plain, traceless = eigendecompose(tensor, u), eigendecompose(tensor, u, gauge="traceless")
    assert traceless.eigenvalues.sum().abs() < 1e-10
    assert (plain.gauge, traceless.gauge) == ("none", "traceless")
    shifted = plain.eigenvalues.sort().values - traceless.trace_shift
    close(shifted, traceless.eigenvalues.sort().values)


def test_degenerate_groups_are_named():
    values = torch.tensor([3.0, -2, 2, 2, 0, 0], dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    tensor = BilinearTensor(basis, basis, values[None])
    groups = eigendecompose(tensor, torch.ones(1, dtype=torch.float64)).degenerate_groups()
    assert {len(group) for group in groups} == {2}
    found = eigendecompose(tensor, torch.ones(1, dtype=torch.float64)).eigenvalues
    assert sorted(round(float(found[group[0]]), 6) for group in groups) == [0.0, 2.0]


def test_float32_weights_are_decomposed_in_float64():
    tensor = BilinearTensor(*(torch.randn(size, 40) for size in (30, 30, 3)))
    u = torch.randn(3)
    eigen = eigendecompose(tensor, u)
    exact = eigendecompose(tensor.to(torch.float64), u.double())
    assert eigen.eigenvalues.dtype == torch.float32
    torch.testing.assert_close(eigen.eigenvalues, exact.eigenvalues.float(), rtol=0, atol=1e-5)


def test_bad_input_is_refused_with_what_to_do():
    tensor = BilinearTensor(*(torch.randn(size, 4) for size in (3, 3, 2)))
    with pytest.raises(ValueError, match="`u` must have 2 entries"):
        eigendecompose(tensor, torch.randn(3))
    with pytest.raises(ValueError, match="`k` must be between 1 and d_in = 3, got 4"):
        eigendecompose(tensor, torch.randn(2), 4)
    with pytest.raises(ValueError, match="not finite"):
        eigendecompose(tensor, torch.tensor([1.0, float("nan")]))
    two_spaces = BilinearTensor(torch.randn(3, 4), torch.randn(5, 4), torch.randn(2, 4))
    with pytest.raises(ValueError, match="two different spaces"):
        eigendecompose(two_spaces, torch.randn(2))
    with pytest.raises(ValueError, match="single direction"):
        eigendecompose(tensor, torch.randn(2, 2)).to_tensor()
