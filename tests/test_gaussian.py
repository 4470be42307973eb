"""Inner products of functions against dense formulas and against sampled inputs."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import maps

from tl_bilinear import BilinearTensor, QuadraticMap
from tl_bilinear.gaussian import gaussian_inner, sphere_inner

pytestmark = pytest.mark.one_major(4)


def close(value: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)


def dense_parts(f: QuadraticMap) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dense = f.tensor.to_dense()
    return (dense + dense.mT) / 2, f.linear_map(), f.constant()


def moments(f: QuadraticMap, g: QuadraticMap, second: float, fourth: float) -> torch.Tensor:
    """E[f . g] term by term, from E[x_i x_j] = second * I and E[x_i x_j x_k x_l]."""
    (b, a, c), (b2, a2, c2) = dense_parts(f), dense_parts(g)
    eye = torch.eye(f.d_in, dtype=torch.float64)
    pairs = sum(
        torch.einsum(f"{p},{q}->ijkl", eye, eye)
        for p, q in (("ij", "kl"), ("ik", "jl"), ("il", "jk"))
    )
    quadratic = torch.einsum("oij,okl,ijkl->", b, b2, fourth * pairs)
    cross = torch.einsum("oii,o->", b, c2) + torch.einsum("oii,o->", b2, c)
    return quadratic + second * ((a * a2).sum() + cross) + c @ c2


def another(data, f: QuadraticMap) -> QuadraticMap:
    return data.draw(maps(d_out=f.d_out, d_in=f.d_in))


@given(st.data())
def test_gaussian_inner_is_the_dense_moment_sum(data):
    f = data.draw(maps())
    g = another(data, f)
    close(gaussian_inner(f, g), moments(f, g, 1.0, 1.0))
    close(gaussian_inner(f, g), gaussian_inner(g.symmetrized(), f))


@given(st.data())
def test_the_homogeneous_form_counts_the_constants_three_times(data):
    """2 <Hs, Hs'> + <tr Hs, tr Hs'> - 2 <c, c'>: how the formula is written in 2605.15183."""
    f = data.draw(maps())
    g = another(data, f)
    h, h2 = f.homogeneous(), g.homogeneous()
    traces = [torch.einsum("oii->o", each.to_dense()) for each in (h, h2)]
    plain = 2 * h.inner(h2, symmetrized=True) + traces[0] @ traces[1]
    close(plain, gaussian_inner(h, h2))  # [x; 1] taken for a Gaussian
    close(plain - 2 * f.constant() @ g.constant(), gaussian_inner(f, g))


@given(st.data())
def test_sphere_inner_is_the_dense_moment_sum(data):
    f = data.draw(maps())
    g = another(data, f)
    d = f.d_in
    close(sphere_inner(f, g), moments(f, g, 1.0, d / (d + 2)))


@given(st.data())
def test_the_gauge_is_a_constant_on_the_sphere(data):
    """|x|^2 = d there, so a I and the constant a d are one function; not so for Gaussians."""
    f = data.draw(maps(d_in=3))
    eye = torch.eye(3, dtype=torch.float64)
    identity = QuadraticMap.from_tensor(
        BilinearTensor(eye, eye, torch.ones(f.d_out, 3, dtype=torch.float64))
    )
    nothing = QuadraticMap.from_tensor(0.0 * identity.tensor)
    constant = QuadraticMap(
        nothing.tensor, nothing.left_bias, nothing.right_bias, 3 * torch.ones(f.d_out).double()
    )
    close(sphere_inner(f, identity), sphere_inner(f, constant))
    difference = identity - constant
    assert sphere_inner(difference, difference).abs() < 1e-9
    assert gaussian_inner(difference, difference) > 1


def sampled(f: QuadraticMap, g: QuadraticMap, x: torch.Tensor, y: torch.Tensor) -> tuple:
    products = (f(x, y) * g(x, y)).sum(-1)
    return products.mean(), products.std() / len(x) ** 0.5


@pytest.mark.parametrize("inputs", ["gaussian", "sphere", "centred", "two"])
def test_sampled_inputs_agree(inputs):
    factors = [torch.randn(2, size, 6, dtype=torch.float64) for size in (4, 4, 3)]
    biases = [torch.randn(2, size, dtype=torch.float64) for size in (6, 6, 3)]
    f, g = (
        QuadraticMap(
            BilinearTensor(*(factor[i] for factor in factors), shared_input=inputs != "two"),
            *(bias[i] for bias in biases),
        )
        for i in range(2)
    )
    x = torch.randn(400_000, 4, dtype=torch.float64)
    y = torch.randn_like(x) if inputs == "two" else x
    if inputs == "centred":
        x = x - x.mean(-1, keepdim=True)
    if inputs in ("sphere", "centred"):
        x = y = 2 * x / x.norm(dim=-1, keepdim=True)
    exact = {
        "gaussian": gaussian_inner,
        "two": gaussian_inner,
        "sphere": sphere_inner,
        "centred": lambda f, g: sphere_inner(f, g, centred=True),
    }
    for a, b in itertools.combinations_with_replacement((f, g), 2):
        mean, deviation = sampled(a, b, x, y)
        assert (mean - exact[inputs](a, b)).abs() < 4 * deviation
    wrong = (
        gaussian_inner if inputs in ("sphere", "centred") else lambda f, g: f.tensor.inner(f.tensor)
    )
    mean, deviation = sampled(f, f, x, y)
    assert (mean - wrong(f, f)).abs() > 10 * deviation


def test_gradients_flow():
    leaves = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((3, 2), (3, 2), (2, 2), (2,), (2,), (2,))
    ]

    def value(left, right, out, *biases):
        f = QuadraticMap(BilinearTensor(left, right, out), *biases)
        g = f.change_basis(torch.ones(3, 3).double(), torch.ones(3).double())
        return torch.stack([gaussian_inner(f, g), sphere_inner(f, g, centred=True)])

    assert torch.autograd.gradcheck(value, leaves)
