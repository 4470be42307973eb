"""Readings of the normalised stream as readings of the MLP's own input, for edits of weights.

The MLP reads m = gain * x + bias where a mode reads x. A reading v.x is w.m - w.bias with
P(gain * w) = v, P being the centring of a LayerNorm (the identity without one). Dividing v by the
gain would fail where an entry of it is zero, and blow up rounding where one is small. The raw
columns of W_gate and W_in show the way instead: folded, they are what a mode is made of, so w is
looked for in their span, by least squares. Of a LayerNorm the one direction that P takes out is
free, and is used to make w.bias zero: no bias is needed where the MLP has none.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.hosts.norm import Norm

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Of the norm of a reading, by its dtype: how far from it what is found may be."""


@dataclass(frozen=True, eq=False)
class Readings:
    """`v.x = w.m + offset` for every column, m being the MLP's own input; in float64."""

    columns: Float[Tensor, "d_model k"]
    """w."""
    offsets: Float[Tensor, " k"]
    """-w.bias: zero wherever that can be had."""


@torch.no_grad()
def unfold_readings(
    host: AbstractHost,
    layer: int,
    readings: Float[Tensor, "k d_model"],
    dtype: torch.dtype = torch.float64,
) -> Readings:
    """How the MLP itself can read v.x, for rows v. O(d_mlp d_model^2 + d_model^3).

    Args:
        dtype: the precision that the readings were computed in.

    Raises:
        ValueError: a reading of what the norm's gain hides from the MLP.
    """
    norm, rows = host.mlp_norm(layer), readings.double()
    tolerance = TOLERANCES.get(dtype, 1e-2)
    if norm.centred:  # x is, so the mean of v reads nothing
        rows = rows - rows.mean(-1, keepdim=True)
    if norm.gain is None and norm.bias is None:
        return Readings(rows.mT, rows.new_zeros(len(rows)))
    tensor = host.mlp_weights(layer).tensor.to(torch.float64)
    raw = torch.cat([tensor.left, tensor.right], 1)
    # R^T spans what the raw columns span, in d_model columns: raw = R^T Q^T.
    span = torch.linalg.qr(raw.mT, mode="r").R.mT
    if norm.bias is not None:
        found = _solve(norm, span, rows, tolerance, bias_free=True)
        if found is not None:
            return Readings(found, rows.new_zeros(len(rows)))
    found = _solve(norm, span, rows, tolerance, bias_free=False)
    if found is None:
        raise ValueError(
            f"layer {layer} cannot read this in its weights: the gain of its norm is zero where "
            "the reading is not, so that the MLP never sees it. Ablate by hook (tlb.ablate), or "
            "take modes of this layer's own tensor"
        )
    bias = found.new_zeros(len(found)) if norm.bias is None else norm.bias.double()
    return Readings(found, -bias @ found)


def _solve(
    norm: Norm,
    span: Float[Tensor, "d_model n"],
    rows: Float[Tensor, "k d_model"],
    tolerance: float,
    *,
    bias_free: bool,
) -> Float[Tensor, "d_model k"] | None:
    """w in the span of the raw columns; what is not there is looked for everywhere."""
    target = rows.mT
    if bias_free:
        target = torch.cat([target, target.new_zeros(1, target.shape[1])])
    found = span @ _least_squares(_seen(norm, span, bias_free), target)
    for basis in (span, torch.eye(len(span)).to(span)):  # the span again: iterative refinement
        missing = target - _seen(norm, found, bias_free)
        found = found + basis @ _least_squares(_seen(norm, basis, bias_free), missing)
        error = (target - _seen(norm, found, bias_free)).norm(dim=0)
        if bool((error <= tolerance * target.norm(dim=0)).all()):
            return found
    return None


def _seen(
    norm: Norm, columns: Float[Tensor, "d_model n"], bias_free: bool
) -> Float[Tensor, "seen n"]:
    """P(gain * w), and w.bias below it."""
    folded = columns if norm.gain is None else norm.gain.double()[:, None] * columns
    if norm.centred:
        folded = folded - folded.mean(0)
    if not bias_free:
        return folded
    assert norm.bias is not None, "asked for with a bias only"
    return torch.cat([folded, (norm.bias.double() @ columns)[None]])


def _least_squares(matrix: Tensor, target: Tensor) -> Tensor:
    """The shortest solution, small singular values counted as none."""
    return torch.linalg.pinv(matrix, rtol=1e-13) @ target
