"""Inner products of functions: the mean of f(x) . g(x) over a distribution of inputs.

Two bilinear layers are one function where they agree on every input, so the average over inputs
compares what they do, not how their weights are written. Over x ~ N(0, I) it has a closed form
(Isserlis; 2605.15183 for bilinear layers): with symmetric parts Bs, linear parts A and constants c,

    E[f . g] = 2 <Bs_f, Bs_g> + <A_f, A_g> + <tr Bs_f + c_f, tr Bs_g + c_g>

`tr Bs` is the vector of the traces of the outputs' interaction matrices. In the homogeneous form
H of [x; 1] the same number is 2 <Hs_f, Hs_g> + <tr Hs_f, tr Hs_g> - 2 <c_f, c_g>: the last entry
is the constant 1 and not a Gaussian, whose fourth moment would be 3.

A normalised stream is no Gaussian: it lies on a sphere, and `sphere_inner` averages over that.
Neither is text.
"""

from jaxtyping import Float
from torch import Tensor

from tl_bilinear.quadratic_map import QuadraticMap
from tl_bilinear.tensor import BilinearTensor


def gaussian_inner(
    f: BilinearTensor | QuadraticMap, g: BilinearTensor | QuadraticMap
) -> Float[Tensor, ""]:
    """`E[f(x) . g(x)]` over x ~ N(0, I). O(rank_f * rank_g * d).

    Normalised inputs lie on a sphere instead: `sphere_inner`. Where the legs read two inputs, x
    and y are independent.

    Raises:
        ValueError: two maps of different shape, dtype or device, or one of one input and one of
            two.
    """
    f, g = _with_biases(f), _with_biases(g)
    if not f.tensor.shared_input:
        return f.homogeneous().inner(g.homogeneous())  # E over [x; 1] [x; 1]^T is the identity
    spread, traces = _quadratic_moments(f, g)
    mixed = traces[0] @ g.constant() + f.constant() @ traces[1]
    return spread + _linear_inner(f, g) + mixed + f.constant() @ g.constant()


def sphere_inner(
    f: BilinearTensor | QuadraticMap,
    g: BilinearTensor | QuadraticMap,
    *,
    centred: bool = False,
) -> Float[Tensor, ""]:
    """`E[f(x) . g(x)]` over the sphere |x|^2 = d, where RMSNorm puts its output. O(rank^2 * d).

    As the Gaussian one, with the quadratic parts' term times d / (d + 2): the sphere has no
    spread in |x|, so on it Q and Q + a I differ by a constant only.

    Args:
        centred: over the vectors of that sphere with mean zero, where LayerNorm puts its output.

    Raises:
        ValueError: as `gaussian_inner`; maps of two inputs; `centred` in one dimension.
    """
    f, g = _with_biases(f), _with_biases(g)
    d = size = f.d_in
    if centred:
        if d < 2:
            raise ValueError("`centred` vectors need two dimensions at least, this map has one")
        f, g = (each.fold_input_norm(None, None, centred=True) for each in (f, g))
        size = d - 1
    second, fourth = d / size, d**2 / (size * (size + 2))  # E[x x^T] = second * identity
    spread, traces = _quadratic_moments(f, g)
    mixed = traces[0] @ g.constant() + f.constant() @ traces[1]
    constants = f.constant() @ g.constant()
    return fourth * spread + second * (_linear_inner(f, g) + mixed) + constants


def _with_biases(f: BilinearTensor | QuadraticMap) -> QuadraticMap:
    return f if isinstance(f, QuadraticMap) else QuadraticMap.from_tensor(f)


def _quadratic_moments(f: QuadraticMap, g: QuadraticMap) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """2 <Bs_f, Bs_g> + <tr Bs_f, tr Bs_g>, and both vectors of traces."""
    inner = f.tensor.inner(g.tensor, symmetrized=True)
    first, second = (
        each.tensor.out @ (each.tensor.left * each.tensor.right).sum(0) for each in (f, g)
    )
    return 2 * inner + first @ second, (first, second)


def _linear_inner(f: QuadraticMap, g: QuadraticMap) -> Tensor:
    outputs = f.tensor.out.T @ g.tensor.out
    return ((f.linear_factor().T @ g.linear_factor()) * outputs).sum()
