"""Which inputs the legs read, and linear maps, slices and inner products on every leg."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal, tensors

from tl_bilinear import BilinearTensor, QuadraticMap

pytestmark = pytest.mark.one_major(3)


def close(value: torch.Tensor, expected: torch.Tensor, name: str = "") -> None:
    torch.testing.assert_close(
        value, expected, rtol=1e-9, atol=1e-11, msg=lambda message: f"{name} {message}"
    )


def two_heads() -> tuple[BilinearTensor, BilinearTensor]:
    """An MLP's symmetrised tensor, and the path that reads two heads' outputs, both 3 wide."""
    mlp = BilinearTensor(*(torch.randn(size, 6, dtype=torch.float64) for size in (4, 4, 2)))
    heads = torch.randn(2, 4, 3, dtype=torch.float64)
    return mlp, mlp.symmetrized().compose(left=heads[0], right=heads[1])


def test_two_inputs_of_one_size_are_not_symmetrised():
    _, path = two_heads()
    assert (path.d_left, path.d_right, path.shared_input) == (3, 3, False)
    u = torch.randn(2, dtype=torch.float64)
    dense = torch.einsum("o,oij->ij", u, path.to_dense())
    close(path.interaction_matrix(u), dense)
    assert (dense - dense.T).norm() > 0.1  # else this test could not fail
    for refused in (
        lambda: path.d_in,
        lambda: path(torch.randn(3).double()),
        path.symmetrized,
        lambda: path.norm(symmetrized=True),
        lambda: path.input_gram(path),
        lambda: path.change_basis(torch.eye(3).double()),
    ):
        with pytest.raises(ValueError, match="two different spaces"):
            refused()


def test_two_inputs_stay_two_through_every_operation():
    _, path = two_heads()
    square = torch.randn(3, 3, dtype=torch.float64)
    made = {
        "+": path + path,
        "-": path - path,
        "scale": 2.0 * path,
        "negative": -path,
        "slice": path[:1],
        "contract_out": path.contract_out(torch.randn(3, 2).double()),
        "compose": path.compose(left=square, right=square),
        "transposed": path.transposed(),
        "to": path.to(torch.float32),
        "homogeneous": QuadraticMap.from_tensor(path).homogeneous(),
    }
    assert {name: tensor.shared_input for name, tensor in made.items()} == dict.fromkeys(
        made, False
    )


def test_one_input_stays_one_where_both_legs_pass_the_same_matrix():
    mlp, _ = two_heads()
    matrix = torch.randn(4, 4, dtype=torch.float64)
    assert mlp.compose(left=matrix, right=matrix).shared_input
    assert mlp.compose(out=torch.randn(3, 2).double()).shared_input
    assert not mlp.compose(left=matrix).shared_input
    assert not mlp.compose(left=matrix, right=matrix.clone()).shared_input
    assert mlp.to(torch.float32).shared_input and (mlp + mlp).shared_input


def test_one_input_and_two_do_not_mix():
    mlp = BilinearTensor(*(torch.randn(size, 6) for size in (3, 3, 2)))
    for operation in (
        lambda a, b: a + b,
        lambda a, b: a.inner(b),
        lambda a, b: a.input_gram(b, symmetrized=False),
    ):
        with pytest.raises(ValueError, match="one input and one whose legs read two"):
            operation(mlp, replace(mlp, shared_input=False))
    with pytest.raises(ValueError, match="legs of one size, got left 3 and right 4"):
        BilinearTensor(torch.randn(3, 2), torch.randn(4, 2), torch.randn(5, 2), shared_input=True)


@given(st.data())
def test_compose_is_the_dense_contraction_on_every_leg(data):
    tensor = data.draw(tensors(same_legs=data.draw(st.booleans())))
    left, right, out = (
        normal(data.draw, *shape)
        for shape in ((tensor.d_left, 2), (tensor.d_right, 3), (4, tensor.d_out))
    )
    composed = tensor.compose(left=left, right=right, out=out)
    close(
        composed.to_dense(), torch.einsum("po,oij,ia,jb->pab", out, tensor.to_dense(), left, right)
    )
    x, y = normal(data.draw, 5, 2), normal(data.draw, 5, 3)
    close(composed(x, y), tensor(x @ left.T, y @ right.T) @ out.T)
    close(tensor.transposed()(y @ right.T, x @ left.T), tensor(x @ left.T, y @ right.T))


@given(st.data())
def test_inner_products_of_one_input_equal_their_dense_twins(data):
    a = data.draw(tensors())
    b = BilinearTensor(*(normal(data.draw, size, 3) for size in (a.d_in, a.d_in, a.d_out)))
    dense_a, dense_b = ((t.to_dense() + t.to_dense().mT) / 2 for t in (a, b))
    inner = (dense_a * dense_b).sum()
    close(a.inner(b, symmetrized=True), inner)
    close(a.norm(symmetrized=True), dense_a.norm())
    close(a.cosine(b, symmetrized=True), inner / dense_a.norm() / dense_b.norm())
    close(a.cosine(b), (a.to_dense() * b.to_dense()).sum() / a.norm() / b.norm())


@given(st.data())
def test_slices_are_rows_of_the_output(data):
    tensor = data.draw(tensors(d_out=4))
    dense = tensor.to_dense()
    mask = torch.tensor([True, False, True, False])
    for index in (slice(1, 3), slice(None, None, 2), [3, 0], torch.tensor([2, 2]), mask):
        close(tensor[index].to_dense(), dense[index])
    close(tensor[-1].to_dense(), dense[-1:])
    assert len(list(tensor)) == 4
    with pytest.raises(IndexError, match="output 4 of a tensor that has 4"):
        tensor[4]


@pytest.mark.parametrize("symmetrized", [False, True])
def test_gradients_flow_through_the_algebra(symmetrized):
    factors = [torch.randn(size, 3, dtype=torch.float64, requires_grad=True) for size in (4, 4, 2)]
    basis = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    u = torch.randn(2, dtype=torch.float64)

    def value(left, right, out, basis):
        tensor = BilinearTensor(left, right, out)
        other = (2.0 * tensor - tensor.transposed()).change_basis(basis)
        changed = tensor.change_basis(basis)
        return torch.stack(
            [
                changed.cosine(other, symmetrized=symmetrized),
                other.norm(symmetrized=symmetrized),
                other.symmetrized()[0].interaction_matrix(u[:1]).square().sum(),
            ]
        )

    assert torch.autograd.gradcheck(value, [*factors, basis])


def test_bad_pairs_are_refused():
    tensor = BilinearTensor(*(torch.randn(size, 4) for size in (3, 3, 2)))
    with pytest.raises(ValueError, match="norm above zero"):
        tensor.cosine(0.0 * tensor)
    with pytest.raises(ValueError, match=r"one dtype and device.*use \.to"):
        _ = tensor + tensor.to(torch.float64)


@pytest.mark.gpu
def test_the_algebra_runs_on_a_gpu():
    tensor = BilinearTensor(*(torch.randn(size, 4) for size in (3, 3, 2)))
    there = tensor.to("cuda")
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cosine(there + there).cpu(), torch.tensor(1.0))
    with pytest.raises(ValueError, match="one dtype and device"):
        _ = tensor + there
