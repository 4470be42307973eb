"""Tensor similarity: dense twins, the Gaussian expectation, invariances, matrices of layers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import normal, tensors

from tl_bilinear import BilinearTensor, similarity_matrix, tensor_similarity

pytestmark = pytest.mark.one_major(4)


def close(value: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-11)


def random_tensor(d_out: int, d_in: int, rank: int) -> BilinearTensor:
    return BilinearTensor(
        *(torch.randn(size, rank, dtype=torch.float64) for size in (d_in, d_in, d_out))
    )


def symmetric_dense(tensor: BilinearTensor, gauge: str = "none") -> torch.Tensor:
    dense = tensor.to_dense()
    dense = (dense + dense.mT) / 2
    if gauge == "traceless":
        trace = dense.diagonal(dim1=1, dim2=2).mean(-1)
        dense = dense - trace[:, None, None] * torch.eye(tensor.d_in, dtype=dense.dtype)
    return dense


@pytest.mark.parametrize("gauge", ["none", "traceless"])
@pytest.mark.parametrize("inner", ["frobenius", "gaussian"])
@settings(max_examples=15)
@given(data=st.data())
def test_the_cosine_is_that_of_the_dense_symmetrised_tensors(inner, gauge, data):
    a = data.draw(tensors(d_in=3))
    b = BilinearTensor(*(normal(data.draw, size, 2) for size in (3, 3, a.d_out)))
    found = tensor_similarity(a, b, inner=inner, gauge=gauge)
    dense_a, dense_b = symmetric_dense(a, gauge), symmetric_dense(b, gauge)

    def product(x, y):
        plain = (x * y).sum()
        if inner == "frobenius":
            return plain
        traces = [dense.diagonal(dim1=1, dim2=2).sum(-1) for dense in (x, y)]
        return 2 * plain + traces[0] @ traces[1]

    norms = [product(dense, dense).sqrt() for dense in (dense_a, dense_b)]
    close(found.norm_a, norms[0])
    close(found.norm_b, norms[1])
    close(found.cosine, product(dense_a, dense_b) / (norms[0] * norms[1]))
    close(found.inner / (found.norm_a * found.norm_b), found.cosine)
    assert (found.inner_product, found.gauge, found.symmetrized) == (inner, gauge, True)
    assert float(found) == float(found.cosine)


def test_the_gaussian_product_is_the_expectation_over_inputs():
    a, b = random_tensor(3, 4, 5), random_tensor(3, 4, 6)
    x = torch.randn(400_000, 4, dtype=torch.float64)
    samples = (a(x) * b(x)).sum(-1)
    found = tensor_similarity(a, b, inner="gaussian").inner
    assert (samples.mean() - found).abs() < 5 * samples.std() / len(x) ** 0.5
    assert (samples.mean() - tensor_similarity(a, b).inner).abs() > 20 * samples.std() / len(
        x
    ) ** 0.5


def test_what_a_cosine_does_not_see():
    a, b = random_tensor(4, 5, 6), random_tensor(4, 5, 9)
    expected = tensor_similarity(a, b).cosine
    order = torch.randperm(6)
    permuted = BilinearTensor(a.left[:, order], a.right[:, order], a.out[:, order])
    scales = [torch.rand(6, dtype=torch.float64) + 0.5 for _ in range(2)]
    scaled = BilinearTensor(
        a.left * scales[0], a.right * scales[1], a.out / (scales[0] * scales[1])
    )
    swapped = BilinearTensor(a.right, a.left, a.out)
    for same in (permuted, scaled, swapped, 3.0 * a):
        close(tensor_similarity(same, b).cosine, expected)
        close(tensor_similarity(same, a).cosine, torch.ones_like(expected))
    close(tensor_similarity(-1.0 * a, b).cosine, -expected)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    close(tensor_similarity(a.change_basis(turn), b.change_basis(turn)).cosine, expected)
    assert tensor_similarity(a.change_basis(turn), a).cosine < 0.9


def test_traceless_sees_through_the_freedom_of_a_norm():
    """Q and Q + aI are one function on a sphere."""
    a = random_tensor(2, 4, 5)
    eye, ones = torch.eye(4, dtype=torch.float64), torch.ones(2, 4, dtype=torch.float64)
    shifted = a + BilinearTensor(eye, eye, 30 * ones)
    assert tensor_similarity(a, shifted).cosine.abs() < 0.8
    close(tensor_similarity(a, shifted, gauge="traceless").cosine, torch.ones(()).double())


def test_tensors_of_two_inputs_are_compared_as_they_stand():
    sizes = (3, 5, 2)
    a, b = (
        BilinearTensor(*(torch.randn(size, 4, dtype=torch.float64) for size in sizes))
        for _ in range(2)
    )
    dense = [tensor.to_dense() for tensor in (a, b)]
    found = tensor_similarity(a, b)
    assert not found.symmetrized
    close(found.cosine, (dense[0] * dense[1]).sum() / (dense[0].norm() * dense[1].norm()))
    with pytest.raises(ValueError, match="are for symmetrised tensors"):
        tensor_similarity(a, b, inner="gaussian")
    with pytest.raises(ValueError, match="are for symmetrised tensors"):
        tensor_similarity(a, b, gauge="traceless")
    square = random_tensor(2, 3, 4)
    swapped = BilinearTensor(square.right, square.left, square.out)
    close(tensor_similarity(square, swapped).cosine, torch.ones(()).double())
    assert tensor_similarity(square, swapped, symmetrized=False).cosine < 0.99


def test_gradients_flow():
    a, b = random_tensor(2, 3, 3), random_tensor(2, 3, 2)
    left = a.left.clone().requires_grad_()

    def loss(left):
        return tensor_similarity(BilinearTensor(left, a.right, a.out), b).cosine

    assert torch.autograd.gradcheck(loss, left)


def test_float32_products_are_summed_in_float64():
    a, b = random_tensor(6, 7, 40), random_tensor(6, 7, 30)
    exact = tensor_similarity(a, b)
    coarse = tensor_similarity(a.to(torch.float32), b.to(torch.float32), dtype=torch.float32)
    assert coarse.cosine.dtype == torch.float64
    torch.testing.assert_close(coarse.cosine, exact.cosine, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inner", ["frobenius", "gaussian"])
def test_a_matrix_holds_every_pair(inner):
    layers = [random_tensor(4, 5, rank) for rank in (3, 6, 9)]
    layers.append(layers[0] + 0.01 * layers[1])
    found = similarity_matrix(layers, ["a", "b", "c", "d"], inner=inner)
    for i, first in enumerate(layers):
        for j, second in enumerate(layers):
            close(found.cosines[i, j], tensor_similarity(first, second, inner=inner).cosine)
    assert torch.equal(found.cosines, found.cosines.T)
    assert torch.equal(found.cosines.diagonal(), torch.ones(4, dtype=torch.float64))
    (first, second, cosine), _ = found.top(2)
    assert (first, second) == ("a", "d") and cosine > 0.99
    assert similarity_matrix(layers).labels == ("0", "1", "2", "3")


def test_each_pair_is_computed_once(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "tl_bilinear.decompositions.similarity._inner",
        lambda a, b, *rest: calls.append(1) or torch.ones((), dtype=torch.float64) * 1e6,
    )
    similarity_matrix([random_tensor(2, 3, 2) for _ in range(5)])
    assert len(calls) == 15


def test_bad_input_is_refused():
    a = random_tensor(3, 4, 5)
    with pytest.raises(ValueError, match=r"`a` has \(3, 4, 4\), `b` has \(3, 5, 5\)"):
        tensor_similarity(a, random_tensor(3, 5, 5))
    with pytest.raises(ValueError, match="`b.left` has entries that are not finite"):
        tensor_similarity(a, BilinearTensor(a.left / 0.0, a.right, a.out))
    with pytest.raises(ValueError, match="`b` acts as zero"):
        tensor_similarity(a, 0.0 * a)
    # Antisymmetric: nothing of it acts on one input.
    both = BilinearTensor(
        torch.cat([a.left, a.right], 1),
        torch.cat([a.right, a.left], 1),
        torch.cat([a.out, -a.out], 1),
    )
    with pytest.raises(ValueError, match="`a` acts as zero"):
        tensor_similarity(both, a)
    with pytest.raises(ValueError, match="`a` is empty"):
        tensor_similarity(BilinearTensor(*(torch.randn(3, 0) for _ in range(3))), a)
    with pytest.raises(ValueError, match="`tensors` is empty"):
        similarity_matrix([])
    with pytest.raises(ValueError, match="`labels` has 1 names for 2 tensors"):
        similarity_matrix([a, a], ["a"])


def test_unknown_words_are_refused(unchecked):
    a = random_tensor(3, 4, 5)
    with pytest.raises(ValueError, match='`inner` must be "frobenius" or "gaussian"'):
        tensor_similarity(a, a, inner="uniform")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='`gauge` must be "none" or "traceless"'):
        tensor_similarity(a, a, gauge="lorenz")  # type: ignore[arg-type]
