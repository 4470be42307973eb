"""Every factored operation against its dense twin, and the algebra's laws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal, tensors

from tl_bilinear import BilinearTensor, QuadraticMap

pytestmark = pytest.mark.one_major(4)


def close(value: torch.Tensor, expected: torch.Tensor, name: str = "") -> None:
    torch.testing.assert_close(
        value, expected, rtol=1e-9, atol=1e-12, msg=lambda message: f"{name} {message}"
    )


def evaluate(dense: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.einsum("oij,...i,...j->...o", dense, x, y)


@given(st.data())
def test_forward_is_the_dense_contraction(data):
    tensor = data.draw(tensors(same_legs=False))
    x = normal(data.draw, 3, tensor.d_left)
    y = normal(data.draw, 3, tensor.d_right)
    close(tensor(x, y), evaluate(tensor.to_dense(), x, y))


@given(st.data())
def test_one_input_feeds_both_legs(data):
    tensor = data.draw(tensors())
    x = normal(data.draw, 2, 3, tensor.d_in)
    close(tensor(x), evaluate(tensor.to_dense(), x, x))


@given(st.data())
def test_operations_equal_their_dense_twins(data):
    a = data.draw(tensors(same_legs=False))
    b = BilinearTensor(
        normal(data.draw, a.d_left, 2),
        normal(data.draw, a.d_right, 2),
        normal(data.draw, a.d_out, 2),
        shared_input=False,
    )
    dense_a, dense_b = a.to_dense(), b.to_dense()
    matrix = normal(data.draw, 3, a.d_out)
    twins = {
        "+": ((a + b).to_dense(), dense_a + dense_b),
        "-": ((a - b).to_dense(), dense_a - dense_b),
        "scale": ((-2.5 * a).to_dense(), -2.5 * dense_a),
        "inner": (a.inner(b), (dense_a * dense_b).sum()),
        "norm": (a.norm(), dense_a.norm()),
        "contract_out": (
            a.contract_out(matrix).to_dense(),
            torch.einsum("co,oij->cij", matrix, dense_a),
        ),
    }
    for name, (value, expected) in twins.items():
        close(value, expected, name)


@given(st.data())
def test_symmetrized_and_change_basis(data):
    tensor = data.draw(tensors())
    dense = tensor.to_dense()
    symmetric = tensor.symmetrized().to_dense()
    close(symmetric, (dense + dense.mT) / 2)
    x = normal(data.draw, tensor.d_in)
    close(tensor.symmetrized()(x), tensor(x))
    basis = normal(data.draw, tensor.d_in, 2)
    changed = torch.einsum("oij,ia,jb->oab", dense, basis, basis)
    close(tensor.change_basis(basis).to_dense(), changed)
    z = normal(data.draw, 4, 2)
    close(tensor.change_basis(basis)(z), tensor(z @ basis.T))


@given(st.data())
def test_interaction_matrix(data):
    tensor = data.draw(tensors())
    u = normal(data.draw, 3, tensor.d_out)
    matrix = tensor.interaction_matrix(u)
    dense = torch.einsum("bo,oij->bij", u, tensor.to_dense())
    close(matrix, (dense + dense.mT) / 2)
    x = normal(data.draw, tensor.d_in)
    close(torch.einsum("bij,i,j->b", matrix, x, x), u @ tensor(x))


@given(st.data())
def test_input_gram_gives_the_inner_products_of_the_unfoldings(data):
    a = data.draw(tensors())
    b = BilinearTensor(*(normal(data.draw, size, 3) for size in (a.d_in, a.d_in, 2)))
    dense_a, dense_b = a.symmetrized().to_dense(), b.symmetrized().to_dense()
    gram = torch.einsum("oij,pij->op", dense_a, dense_b)
    close(a.out @ a.input_gram(b) @ b.out.T, gram)
    plain = torch.einsum("oij,pij->op", a.to_dense(), b.to_dense())
    close(a.out @ a.input_gram(b, symmetrized=False) @ b.out.T, plain)


def test_interaction_matrix_of_two_spaces_is_rectangular():
    tensor = BilinearTensor(torch.randn(3, 2), torch.randn(4, 2), torch.randn(5, 2))
    u = torch.randn(5)
    matrix = tensor.interaction_matrix(u)
    torch.testing.assert_close(matrix, torch.einsum("o,oij->ij", u, tensor.to_dense()))


@given(st.data())
def test_algebra_laws(data):
    a = data.draw(tensors())
    b = BilinearTensor(*(normal(data.draw, size, 2) for size in (a.d_in, a.d_in, a.d_out)))
    assert (a - a).norm() <= 1e-6 * (1 + a.norm())
    close(a.inner(b), b.inner(a))
    torch.testing.assert_close((a + b).inner(a), a.inner(a) + b.inner(a), rtol=1e-9, atol=1e-9)
    assert a.inner(b).abs() <= a.norm() * b.norm() * (1 + 1e-9)
    assert a.symmetrized().norm() <= a.norm() * (1 + 1e-9)


def test_gradients_reach_the_factors():
    factors = [torch.randn(size, 3, dtype=torch.float64, requires_grad=True) for size in (4, 4, 2)]
    x = torch.randn(4, dtype=torch.float64)

    def value(left, right, out):
        return BilinearTensor(left, right, out)(x)

    assert torch.autograd.gradcheck(value, factors)


@given(st.data())
def test_quadratic_map_parts_add_up(data):
    tensor = data.draw(tensors())
    biases = [normal(data.draw, size) for size in (tensor.rank, tensor.rank, tensor.d_out)]
    layer = QuadraticMap(tensor, *biases)
    x = normal(data.draw, 3, tensor.d_in)
    product = (x @ tensor.left + biases[0]) * (x @ tensor.right + biases[1])
    expected = product @ tensor.out.T + biases[2]
    close(layer(x), expected)
    parts = layer.quadratic(x) + layer.linear(x) + layer.constant()
    torch.testing.assert_close(parts, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(layer.linear(x), x @ layer.linear_map().T, rtol=1e-9, atol=1e-10)
    close(layer(torch.zeros_like(x[0])), layer.constant())


@given(st.data(), st.booleans())
def test_folding_a_norm(data, centred):
    tensor = data.draw(tensors())
    d = tensor.d_in
    biases = [normal(data.draw, size) for size in (tensor.rank, tensor.rank, tensor.d_out)]
    layer = QuadraticMap(tensor, *biases)
    gain, bias = normal(data.draw, d), normal(data.draw, d)
    x = normal(data.draw, 4, d)
    if centred:
        x = x - x.mean(-1, keepdim=True)
    folded = layer.fold_input_norm(gain, bias, centred)
    torch.testing.assert_close(folded(x), layer(gain * x + bias), rtol=1e-8, atol=1e-9)
    if centred:
        ones = torch.ones(d, dtype=torch.float64)
        assert (ones @ folded.tensor.left).abs().max() < 1e-12


def test_any_two_input_boolean_function():
    """papers.md 1.4: a bilinear output with biases holds all 16 two-input truth tables."""
    inputs = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64)
    for gate in range(16):
        table = torch.tensor([(gate >> i) & 1 for i in range(4)], dtype=torch.float64)
        t00, t01, t10, t11 = table
        # x0 (t10 - t00) + x1 (t01 - t00) + x0 x1 (t11 - t10 - t01 + t00) + t00, each a neuron
        left = torch.tensor([[1.0, 0, 1], [0, 1, 0]], dtype=torch.float64)
        right = torch.tensor([[0.0, 0, 0], [0, 0, 1]], dtype=torch.float64)
        out = torch.stack([t10 - t00, t01 - t00, t11 - t10 - t01 + t00])[None]
        right_bias = torch.tensor([1.0, 1, 0], dtype=torch.float64)
        layer = QuadraticMap(
            BilinearTensor(left, right, out),
            torch.zeros(3, dtype=torch.float64),
            right_bias,
            t00[None],
        )
        torch.testing.assert_close(layer(inputs)[:, 0], table)


def test_to_changes_every_factor():
    tensor = BilinearTensor(torch.randn(3, 2), torch.randn(3, 2), torch.randn(4, 2))
    double = tensor.to(torch.float64)
    assert {double.left.dtype, double.right.dtype, double.out.dtype} == {torch.float64}


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((3, 2), (3, 2), (2, 4)), "share their last axis, the rank"),
        (((3, 2), (3, 2), (2,)), r"must be \[size, rank\] matrices"),
    ],
)
def test_wrong_factors_are_refused(shapes, words, unchecked):
    with pytest.raises(ValueError, match=words):
        BilinearTensor(*(torch.randn(shape) for shape in shapes))


def test_mixed_dtypes_and_shapes_are_refused():
    a = BilinearTensor(torch.randn(3, 2), torch.randn(3, 2), torch.randn(4, 2))
    with pytest.raises(ValueError, match="share dtype and device"):
        BilinearTensor(a.left.double(), a.right, a.out)
    with pytest.raises(ValueError, match="two tensors of one shape"):
        _ = a + BilinearTensor(torch.randn(2, 2), torch.randn(2, 2), torch.randn(4, 2))
    two_spaces = BilinearTensor(torch.randn(3, 2), torch.randn(5, 2), torch.randn(4, 2))
    with pytest.raises(ValueError, match="reads two different spaces"):
        two_spaces(torch.randn(3))
