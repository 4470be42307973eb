"""What ablating modes subtracts from one layer's MLP output.

Several modes of one layer, with directions U (rows), are taken out together (DESIGN 2.8):

    y -= (1 - scale) U^T (U U^T)^+ [sum_k lambda_ck (v_ck . x)^2]_c

so that u_c . y loses exactly its own modes even where directions are nearly parallel. For
one direction this is y -= (1 - scale) u lambda (v.x)^2 / |u|^2. With scale "mean" a mode's
(v.x)^2 is replaced by its mean over texts instead.

A direction is what it is whatever its length and sign: parallel and opposite ones, and those that
rounding alone tells apart, count as one, whose modes add up. A mode given twice is taken out once.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_bilinear.ablation.alike import NEAR, given_once
from tl_bilinear.decompositions import Mode
from tl_bilinear.decompositions.mode import by_layer, stacked
from tl_bilinear.decompositions.parallel import group_rows
from tl_bilinear.hosts import AbstractHost
from tl_bilinear.hosts.corpus import hook_batches
from tl_bilinear.hosts.gates import activation_name

Scale = float | Literal["mean"]
Texts = Iterable[str | Int[Tensor, "..."]]
"""Texts, or rows of token ids."""


@dataclass(frozen=True, eq=False)
class LayerEdit:
    """What is subtracted from one layer's MLP output."""

    eigenvectors: Float[Tensor, "mode d_in"]
    coefficients: Float[Tensor, "mode d_out"]
    """Row k: (1 - scale) lambda_k U^T (U U^T)^+ e_c, c being mode k's direction."""
    means: Float[Tensor, " mode"]
    """What (v.x)^2 is replaced by: its mean over texts, or zero."""

    @property
    def offset(self) -> Float[Tensor, " d_out"]:
        """What is given back at every position."""
        return self.means @ self.coefficients

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """O(modes * d) per vector."""
        squares = (x @ self.eigenvectors.to(x).mT) ** 2
        return (squares - self.means.to(x)) @ self.coefficients.to(x)

    def fits(self, x: Tensor) -> bool:
        """Whether `to(x)` would change nothing."""
        return (self.means.dtype, self.means.device) == (x.dtype, x.device)

    def to(self, x: Tensor) -> "LayerEdit":
        """In a tensor's dtype and on its device."""
        return LayerEdit(self.eigenvectors.to(x), self.coefficients.to(x), self.means.to(x))


def layer_edits(
    host: AbstractHost,
    modes: Sequence[Mode],
    scale: Scale,
    texts: Texts | None = None,
) -> dict[int, LayerEdit]:
    """One edit per layer, in float64.

    Raises:
        ValueError: an unknown scale, or "mean" without texts that hold tokens.
    """
    _require_scale(scale, texts)
    factor = 0.0 if isinstance(scale, str) else float(scale)
    edits = {layer: _layer_edit(group, factor) for layer, group in by_layer(modes).items()}
    return edits if texts is None else _with_means(host, edits, texts)


def _layer_edit(modes: Sequence[Mode], scale: float) -> LayerEdit:
    directions, vectors = stacked(modes, "direction"), stacked(modes, "eigenvector")
    lengths = directions.norm(dim=1)
    units, group, signs = group_rows(directions / lengths[:, None], NEAR)
    values = torch.tensor([mode.eigenvalue for mode in modes], dtype=torch.float64).to(lengths)
    values = values * signs / lengths  # along the group's direction of length one
    kept = given_once(group, values * vectors.square().sum(1), vectors)
    # Row c of pinv(U)^T moves u_c . y by one and every other u . y by nothing.
    dual = torch.linalg.pinv(units).mT
    return LayerEdit(
        eigenvectors=vectors[kept],
        coefficients=(1 - scale) * values[kept, None] * dual[group[kept]],
        means=dual.new_zeros(len(kept)),
    )


def _with_means(
    host: AbstractHost, edits: dict[int, LayerEdit], texts: Texts
) -> dict[int, LayerEdit]:
    """(v.x)^2 at every token of the texts but the first (BOS), whose stream is unlike any other."""
    sites = {layer: host.mlp_input_site(layer) for layer in edits}
    sums = {layer: torch.zeros_like(edit.means) for layer, edit in edits.items()}
    tokens = 0
    for values in hook_batches(host, texts, list(sites.values())):
        for layer, edit in edits.items():
            x = values[sites[layer]]
            sums[layer] += (x @ edit.eigenvectors.to(x).mT).square().sum(0).to(sums[layer])
        tokens += len(next(iter(values.values())))
    if not tokens:
        raise ValueError("the texts hold no token behind their first one")
    return {
        layer: LayerEdit(edit.eigenvectors, edit.coefficients, sums[layer] / tokens)
        for layer, edit in edits.items()
    }


def require_modes(host: AbstractHost, modes: Sequence[Mode]) -> None:
    """Raise ValueError for modes that this model cannot have."""
    for mode in modes:
        require_layer(host, mode.layer, "a mode")
        _require_shapes(host, mode)
        if not math.isfinite(mode.eigenvalue):
            raise ValueError(f"{mode!r} has the eigenvalue {mode.eigenvalue}: it must be finite")
    for group in by_layer(modes).values():
        _require_bilinear(host, group[0])
        for name in ("direction", "eigenvector"):
            largest = stacked(group, name).abs().amax(1).tolist()  # not a number where one is
            for mode, size in zip(group, largest, strict=True):
                if not 0 < size < math.inf:
                    raise ValueError(
                        f"{mode!r} has a {name} of length zero, or one with numbers that are not "
                        "finite: nothing can be taken out of it"
                    )


def _require_shapes(host: AbstractHost, mode: Mode) -> None:
    shapes = (mode.direction.shape, mode.eigenvector.shape)
    if shapes != ((host.d_model,), (host.d_model,)):
        raise ValueError(
            f"{mode!r} has vectors of shapes {[list(s) for s in shapes]}, this model has "
            f"d_model = {host.d_model}"
        )


def _require_bilinear(host: AbstractHost, mode: Mode) -> None:
    if host.is_gated(mode.layer):
        raise ValueError(
            f"{mode!r} cannot be ablated: layer {mode.layer} has a "
            f"{activation_name(host.gate_activation(mode.layer))} gate, whose slopes give every "
            "token modes of its own; taken out elsewhere, lambda (v.x)^2 is no part of the model. "
            "Convert the model first (tl_bilinear.bilinearize)"
        )


def require_layer(host: AbstractHost, layer: int, what: str) -> None:
    """Raise ValueError for a layer that this model does not have."""
    if not 0 <= layer < host.n_layers:
        raise ValueError(
            f"{what} is of layer {layer}, but this model has layers 0-{host.n_layers - 1}"
        )


def _require_scale(scale: Scale, texts: Texts | None) -> None:
    if isinstance(scale, str):
        if scale != "mean":
            raise ValueError(f'`scale` must be a number or "mean", got {scale!r}')
        if texts is None:
            raise ValueError('scale="mean" needs `texts`: the mean is taken over their tokens')
        return
    require_number(scale)
    if texts is not None:
        raise ValueError(f'`texts` are for scale="mean", and the scale is {scale}')


def require_number(scale: object) -> None:
    """Raise ValueError unless a scale is one finite number."""
    try:
        finite = math.isfinite(scale)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"`scale` must be a number, got {scale!r}") from None
    if not finite:
        raise ValueError(f"`scale` must be finite, got {scale}")
