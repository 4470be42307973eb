"""Maps with biases: algebra against values, and the homogeneous form."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import maps, normal

from tl_bilinear import BilinearTensor, QuadraticMap

pytestmark = pytest.mark.one_major(4)


def close(value: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-10)


def with_one(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)


def inputs(data, f: QuadraticMap) -> tuple[torch.Tensor, torch.Tensor]:
    x = normal(data.draw, 4, f.tensor.d_left)
    return x, x if f.tensor.shared_input else normal(data.draw, 4, f.tensor.d_right)


@given(st.data(), st.booleans())
def test_homogeneous_is_one_tensor_of_the_same_function(data, shared):
    f = data.draw(maps(same_legs=shared))
    x, y = inputs(data, f)
    tensor = f.homogeneous()
    assert tensor.rank == f.tensor.rank + 1
    dense = torch.einsum("oij,bi,bj->bo", tensor.to_dense(), with_one(x), with_one(y))
    close(dense, f(x, y))
    close(tensor(with_one(x), with_one(y)), f(x, y))
    close(f.homogeneous(keep_one=True)(with_one(x), with_one(y)), with_one(f(x, y)))
    close(QuadraticMap.from_homogeneous(tensor)(x, y), f(x, y))


@given(st.data(), st.booleans())
def test_algebra_acts_on_values(data, shared):
    f = data.draw(maps(same_legs=shared))
    x, y = inputs(data, f)
    g = QuadraticMap(
        BilinearTensor(
            *(normal(data.draw, n, 2) for n in (f.tensor.d_left, f.tensor.d_right, f.d_out)),
            shared_input=shared,
        ),
        *(normal(data.draw, n) for n in (2, 2, f.d_out)),
    )
    close((f + g)(x, y), f(x, y) + g(x, y))
    close((f - g)(x, y), f(x, y) - g(x, y))
    close((-2.5 * f)(x, y), -2.5 * f(x, y))
    close((-f)(x, y), -f(x, y))
    close(f[-1](x, y), f(x, y)[:, -1:])
    close(f[:1](x, y), f(x, y)[:, :1])
    close(f.quadratic(x, y) + f.linear(x, y) + f.constant(), f(x, y))
    matrix, offset = normal(data.draw, 3, f.d_out), normal(data.draw, 3)
    close(f.contract_out(matrix, offset)(x, y), f(x, y) @ matrix.T + offset)
    left, right = normal(data.draw, f.tensor.d_left, 2), normal(data.draw, f.tensor.d_right, 3)
    composed = f.compose(left=left, right=right, out=matrix)
    z, w = normal(data.draw, 4, 2), normal(data.draw, 4, 3)
    close(composed(z, w), f(z @ left.T, w @ right.T) @ matrix.T)


@given(st.data())
def test_one_input_maps_read_through_affine_maps(data):
    f = data.draw(maps())
    matrix, offset = normal(data.draw, f.d_in, 2), normal(data.draw, f.d_in)
    z = normal(data.draw, 4, 2)
    close(f.change_basis(matrix, offset)(z), f(z @ matrix.T + offset))
    close(f.change_basis(matrix)(z), f(z @ matrix.T))
    x = normal(data.draw, 4, f.d_in)
    close(f.symmetrized()(x), f(x))
    close(QuadraticMap.from_tensor(f.tensor)(x), f.tensor(x))


@given(st.data())
def test_layers_compose_through_the_homogeneous_form(data):
    """g(f(x)) for two layers: the second tensor reads [f(x); 1] on both legs."""
    f = data.draw(maps(d_out=3))
    g = data.draw(maps(d_in=3))
    x = normal(data.draw, 4, f.d_in)
    between = f.homogeneous(keep_one=True)(with_one(x))
    torch.testing.assert_close(g.homogeneous()(between), g(f(x)), rtol=1e-9, atol=1e-8)


def test_gradients_reach_the_biases():
    shapes = ((3, 2), (3, 2), (2, 2), (2,), (2,), (2,))
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def value(left, right, out, *biases):
        f = QuadraticMap(BilinearTensor(left, right, out), *biases)
        return (f.symmetrized() - 2.0 * f[[1, 0]]).homogeneous().norm()

    assert torch.autograd.gradcheck(value, leaves)


def test_wrong_biases_are_refused(unchecked):
    tensor = BilinearTensor(*(torch.randn(size, 4) for size in (3, 3, 2)))
    with pytest.raises(ValueError, match=r"`right_bias` must have shape \(4,\).*rank says.*\(3,\)"):
        QuadraticMap(tensor, torch.zeros(4), torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"`out_bias` must have shape \(2,\).*d_out says"):
        QuadraticMap(tensor, torch.zeros(4), torch.zeros(4), torch.zeros(3))
    with pytest.raises(ValueError, match="`left_bias` must share the tensor's dtype"):
        QuadraticMap(tensor, torch.zeros(4).double(), torch.zeros(4), torch.zeros(2))
    two = QuadraticMap.from_tensor(BilinearTensor(*(torch.randn(n, 4) for n in (3, 5, 2))))
    with pytest.raises(ValueError, match="two different spaces"):
        two(torch.randn(3))
    with pytest.raises(ValueError, match="two different spaces"):
        two.linear_map()
