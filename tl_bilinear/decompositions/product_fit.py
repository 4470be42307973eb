"""Fitting a given number of products to a tensor: B(x) ~ sum_r o_r (l_r . x) (r_r . x).

A bilinear MLP's neurons are products, so this is a layer of a given width that comes near to a
tensor of a larger rank. The loss is the squared distance of symmetric parts (only those act), a
polynomial of the factors, minimised by L-BFGS from a given start. It is made of Gram matrices on
the rank axis; the tensor is never built.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.tensor import BilinearTensor

_HISTORY = 20
_AT_ONCE = 10


@dataclass(frozen=True, eq=False)
class ProductFit:
    """Products, and how near they came."""

    left_move: Float[Tensor, "n rank"]
    """By what left legs moved: `start.left + legs @ left_move`."""
    right_move: Float[Tensor, "n rank"]
    out: Float[Tensor, "d_out rank"]
    losses: tuple[float, ...]
    """|Sym(target - products)|^2 and what is held, over `unit`: at the start, then every ten steps;
    it never rises but by rounding."""


@torch.enable_grad()
def fit_products(
    target: BilinearTensor,
    start: BilinearTensor,
    legs: Float[Tensor, "d_in n"],
    unit: float,
    steps: int,
    fixed: int = 0,
    held: BilinearTensor | None = None,
    weight: float = 0.0,
) -> ProductFit:
    """`start.rank` products nearest to the target's symmetric part. O(rank^2 d) a step, in float64.

    Args:
        start: what the products are at first.
        legs: columns span the moves that legs may make (all of them: the identity).
        unit: what squared distances are measured in.
        steps: most steps; fewer where ten of them no longer gain a thousandth.
        fixed: how many products, the last ones, keep their legs.
        held: products along which differences count `weight` times more.
    """
    sizes = [factor.norm(dim=0).clamp_min(1e-30) for factor in (start.left, start.right, start.out)]
    even = (sizes[0] * sizes[1] * sizes[2]) ** (1 / 3)  # all three legs of one size
    left, right, out = (
        factor * (even / size)
        for factor, size in zip((start.left, start.right, start.out), sizes, strict=True)
    )
    moves = [torch.zeros(legs.shape[1], start.rank).to(legs).requires_grad_() for _ in range(2)]
    written = out.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    squared = _inner(target, target)
    if held is not None:
        wanted, held_sizes = _inners(held, target).sum(1), _product_sizes(held).clamp_min(1e-150)
    free = (torch.arange(start.rank, device=legs.device) < start.rank - fixed).to(legs)

    def loss() -> Tensor:
        moved = [legs @ (move * free) for move in moves]
        products = BilinearTensor(left + moved[0], right + moved[1], written)
        cross, own = _inner(products, target), _inner(products, products)
        beyond = 0.0
        if held is not None:
            along = _inners(held, products).sum(1) - wanted
            beyond = weight * (along / held_sizes).square().sum()
        return (squared - 2 * cross + own + beyond) / unit

    optimizer = torch.optim.LBFGS(
        [*moves, written],
        max_iter=_AT_ONCE,
        history_size=_HISTORY,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    with torch.no_grad():
        losses = [float(loss())]
    for _ in range(0, steps, _AT_ONCE):
        optimizer.step(closure)
        with torch.no_grad():
            losses.append(float(loss()))
        if not losses[-1] < 0.999 * losses[-2]:
            break
    scales = (even / sizes[0], even / sizes[1])
    with torch.no_grad():
        found = [move * free / scale for move, scale in zip(moves, scales, strict=True)]
        return ProductFit(found[0], found[1], written * scales[0] * scales[1], tuple(losses))


def _inner(a: BilinearTensor, b: BilinearTensor) -> Float[Tensor, ""]:
    """Of symmetric parts, in one block: what a step remembers for its gradient."""
    return _inners(a, b).sum()


def _inners(a: BilinearTensor, b: BilinearTensor) -> Float[Tensor, "rank_a rank_b"]:
    """Of every product of one with every product of the other, symmetric parts."""
    straight = (a.left.T @ b.left) * (a.right.T @ b.right)
    crossed = (a.left.T @ b.right) * (a.right.T @ b.left)
    return (a.out.T @ b.out) * (straight + crossed) / 2


def smallest_product_distance(a: BilinearTensor, b: BilinearTensor) -> float:
    """Least distance between a product of `a` and one of `b`, both of norm one, up to sign.

    0 for a product that both hold (in whatever scale), sqrt(2) for orthogonal ones. Products that
    are zero are left out. O(rank_a rank_b d).
    """
    sizes = [_product_sizes(tensor) for tensor in (a, b)]
    kept = [size > 0 for size in sizes]
    a, b = (_columns(tensor, chosen) for tensor, chosen in zip((a, b), kept, strict=True))
    cosines = _inners(a, b) / sizes[0][kept[0]][:, None] / sizes[1][kept[1]]
    nearest = cosines.abs().max().clamp_max(1)
    return float((2 - 2 * nearest).sqrt())


def _product_sizes(tensor: BilinearTensor) -> Float[Tensor, " rank"]:
    left, right = tensor.left, tensor.right
    straight = left.square().sum(0) * right.square().sum(0)
    inner = (straight + (left * right).sum(0).square()) / 2
    return (inner * tensor.out.square().sum(0)).sqrt()


def _columns(tensor: BilinearTensor, chosen: Tensor) -> BilinearTensor:
    return BilinearTensor(tensor.left[:, chosen], tensor.right[:, chosen], tensor.out[:, chosen])
