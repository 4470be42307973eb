"""An edited MLP as one of the original width: its products fitted anew, none of the old ones left.

The edited tensor has the original neurons and those that subtract the modes. Fitted to the original
number of neurons (symmetric parts, in coordinates where inputs have unit covariance), it starts at
the original neurons, which is near, and every weight of every neuron moves. What the fit cannot
hold is its error; how far the neurons came from the original ones is `smallest_distance`.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.decompositions.gram import inner_product
from tl_bilinear.decompositions.product_fit import fit_products, smallest_product_distance
from tl_bilinear.hosts import AbstractHost
from tl_bilinear.hosts.norm import Norm
from tl_bilinear.quadratic_map import QuadraticMap
from tl_bilinear.tensor import BilinearTensor

HELD = 1000.0
"""What a difference along a removed mode counts, where any other counts one. Products of the
original width can only come near; without this they keep half of a mode where that is cheapest."""


@dataclass(frozen=True, eq=False)
class Refit:
    """One layer's weights at the original width."""

    weights: QuadraticMap
    losses: tuple[float, ...]
    """|fitted - edited|^2 over |edit|^2, symmetric parts, before the first step and along it."""


@torch.no_grad()
def refit(
    host: AbstractHost,
    layer: int,
    wanted: QuadraticMap,
    moment: Float[Tensor, "d_model d_model"],
    mean: Float[Tensor, " d_model"],
    steps: int,
) -> Refit:
    """A map of the layer's own width near to `wanted`. O(d_mlp^2 d_model) a step, in float64.

    Args:
        wanted: a map of the MLP's own input, whose first neurons are the layer's.
        moment: E[x x^T] of the normalised stream, which says what inputs are like; and its mean.
    """
    before = host.mlp_weights(layer).to(torch.float64)
    biased = any(b.any() for w in (before, wanted) for b in (w.left_bias, w.right_bias))
    root = _root(moment, mean)
    seen = root @ _readings(host.mlp_norm(layer), biased, moment)
    start, target = (_in_coordinates(w, seen, root, biased) for w in (before, wanted))
    edit = target - start
    unit = max(float(inner_product(edit, edit, True)), 1e-300)
    # Moves of the stored weights, one for each direction in which a leg can go.
    stored = torch.linalg.pinv(seen, rtol=1e-7)
    added = BilinearTensor(
        *(f[:, start.rank - biased : target.rank - biased] for f in _factors(target))
    )
    found = fit_products(
        target, start, seen @ stored, unit, steps, fixed=int(biased), held=added, weight=HELD
    )
    rank, d = before.tensor.rank, len(moment)
    left, right = (stored @ move[:, :rank] for move in (found.left_move, found.right_move))
    fitted = QuadraticMap(
        tensor=BilinearTensor(
            left=before.tensor.left + left[:d],
            right=before.tensor.right + right[:d],
            out=found.out[:, :rank],
        ),
        left_bias=before.left_bias + left[d:].sum(0),
        right_bias=before.right_bias + right[d:].sum(0),
        out_bias=wanted.out_bias,
    )
    if biased:  # the constant was left free
        norm = host.mlp_norm(layer)
        folded = [w.fold_input_norm(norm.gain, norm.bias, norm.centred) for w in (fitted, wanted)]
        missing = folded[1].constant() - folded[0].constant()
        fitted = replace(fitted, out_bias=fitted.out_bias + missing)
    return Refit(fitted, found.losses)


def smallest_distance(a: QuadraticMap, b: QuadraticMap) -> float:
    """Of any neuron of one map to any of the other, as products of norm one; sqrt(2) at most."""
    return smallest_product_distance(a.tensor.to(torch.float64), b.tensor.to(torch.float64))


def left_over(before: QuadraticMap, wanted: QuadraticMap, now: QuadraticMap) -> float:
    """The share of the edit, along itself, that was not made: 1 where nothing was. O(rank^2 d).

    Of symmetric quadratic parts, all three maps reading the normalised stream.
    """
    edit = wanted.tensor - before.tensor
    made = inner_product(edit, now.tensor - before.tensor, True)
    return float(1 - made / inner_product(edit, edit, True).clamp_min(1e-300))


def _factors(tensor: BilinearTensor) -> tuple[Tensor, Tensor, Tensor]:
    return tensor.left, tensor.right, tensor.out


def _root(
    moment: Float[Tensor, "d d"], mean: Float[Tensor, " d"]
) -> Float[Tensor, "d_plus d_plus"]:
    """The symmetric root of E[[x; 1] [x; 1]^T]."""
    last = torch.cat([mean, mean.new_ones(1)])
    whole = torch.cat([torch.cat([moment, mean[:, None]], 1), last[None]])
    values, vectors = torch.linalg.eigh(whole)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.mT


def _readings(norm: Norm, biased: bool, like: Float[Tensor, "d d"]) -> Float[Tensor, "d_plus n"]:
    """What stored columns, [w] or [w; bias], are as readings of [x; 1]."""
    eye = torch.eye(len(like)).to(like)
    folded = eye if norm.gain is None else eye * norm.gain.to(like)[:, None]
    if norm.centred:
        folded = folded - folded.mean(0)
    offset = eye.new_zeros(1, len(eye)) if norm.bias is None else norm.bias.to(like)[None]
    readings = torch.cat([folded, offset])
    if not biased:
        return readings
    last = torch.cat([eye.new_zeros(len(eye), 1), eye.new_ones(1, 1)])
    return torch.cat([readings, last], 1)


def _in_coordinates(
    weights: QuadraticMap, seen: Tensor, root: Tensor, biased: bool
) -> BilinearTensor:
    """In coordinates of unit covariance. With biases there is one more product, of the constant
    input with itself: whatever constant comes out is free."""
    tensor = weights.tensor
    if not biased:
        return BilinearTensor(seen @ tensor.left, seen @ tensor.right, tensor.out)
    one = root[:, -1:]

    def leg(columns: Tensor, bias: Tensor) -> Tensor:
        return torch.cat([seen @ torch.cat([columns, bias[None]]), one], 1)

    return BilinearTensor(
        left=leg(tensor.left, weights.left_bias),
        right=leg(tensor.right, weights.right_bias),
        out=torch.cat([tensor.out, weights.out_bias[:, None]], 1),
    )
