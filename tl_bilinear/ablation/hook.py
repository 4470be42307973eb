"""Ablate modes by hooks: the MLP's output without lambda (v.x)^2 along u.

Several modes of one layer, with directions U (rows), are taken out together (DESIGN 2.8):

    y -= (1 - scale) U^T (U U^T)^+ [sum_k lambda_ck (v_ck . x)^2]_c

so that u_c . y loses exactly its own modes even where directions are nearly parallel. For
one direction this is y -= (1 - scale) u lambda (v.x)^2 / |u|^2.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.decompositions import Mode
from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.gates import activation_name


@dataclass(frozen=True, eq=False)
class LayerEdit:
    """What is subtracted from one layer's MLP output."""

    eigenvectors: Float[Tensor, "mode d_in"]
    coefficients: Float[Tensor, "mode d_out"]
    """Row k: (1 - scale) lambda_k U^T (U U^T)^+ e_c, c being mode k's direction."""

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """O(modes * d) per vector."""
        squares = (x @ self.eigenvectors.to(x).mT) ** 2
        return squares @ self.coefficients.to(x)


@contextmanager
def ablate(model: Any, modes: Mode | Sequence[Mode], scale: float = 0.0) -> Iterator[Any]:
    """Run a model with modes scaled inside a `with` block; the model is yielded.

    Args:
        model: a HookedTransformer, a TransformerBridge or a host.
        modes: one or several, of any layers.
        scale: what a mode's contribution is multiplied with: 0 removes it, -1 reverses it.

    Raises:
        ValueError: no mode, a layer that the model does not have or whose MLP is gated, a
            shape that does not fit.
        RuntimeError: at the end, if the model never ran a hooked layer inside the block.
    """
    host = get_host(model)
    chosen = [modes] if isinstance(modes, Mode) else list(modes)
    if not chosen:
        raise ValueError("`modes` is empty: give at least one mode to ablate")
    edits = layer_edits(host, chosen, scale)
    fired: set[int] = set()
    hooks = [hook for layer, edit in edits.items() for hook in _hooks(host, layer, edit, fired)]
    with host.hooks(hooks):
        yield model
    missing = sorted(set(edits) - fired)
    if missing:
        raise RuntimeError(
            f"nothing was ablated: the MLPs of layers {missing} never ran inside the block"
        )


def layer_edits(host: AbstractHost, modes: Sequence[Mode], scale: float) -> dict[int, LayerEdit]:
    """One edit per layer, in float64."""
    layers: dict[int, list[Mode]] = {}
    for mode in modes:
        _check(host, mode)
        layers.setdefault(mode.layer, []).append(mode)
    return {layer: _layer_edit(group, scale) for layer, group in sorted(layers.items())}


def _layer_edit(modes: Sequence[Mode], scale: float) -> LayerEdit:
    directions = torch.stack([mode.direction.double() for mode in modes])
    unique, index = torch.unique(directions, dim=0, return_inverse=True)
    # Row c of pinv(U)^T moves u_c . y by one and every other u . y by nothing.
    unit = torch.linalg.pinv(unique).mT
    eigenvalues = torch.tensor([mode.eigenvalue for mode in modes], dtype=torch.float64)
    return LayerEdit(
        eigenvectors=torch.stack([mode.eigenvector.double() for mode in modes]),
        coefficients=(1 - scale) * eigenvalues[:, None].to(unit) * unit[index],
    )


def _check(host: AbstractHost, mode: Mode) -> None:
    if not 0 <= mode.layer < host.n_layers:
        raise ValueError(
            f"a mode is of layer {mode.layer}, but this model has layers 0-{host.n_layers - 1}"
        )
    shapes = (mode.direction.shape, mode.eigenvector.shape)
    if shapes != ((host.d_model,), (host.d_model,)):
        raise ValueError(
            f"{mode!r} has vectors of shapes {[list(s) for s in shapes]}, this model has "
            f"d_model = {host.d_model}"
        )
    if host.is_gated(mode.layer):
        raise ValueError(
            f"{mode!r} cannot be ablated: layer {mode.layer} has a "
            f"{activation_name(host.gate_activation(mode.layer))} gate, whose slopes give every "
            "token modes of its own; taken out elsewhere, lambda (v.x)^2 is no part of the model. "
            "Convert the model first (tl_bilinear.bilinearize)"
        )
    if not mode.direction.abs().max() > 0:
        raise ValueError(f"{mode!r} has a direction of length zero: nothing can be taken out of it")


def _hooks(
    host: AbstractHost, layer: int, edit: LayerEdit, fired: set[int]
) -> list[tuple[str, Callable]]:
    stream: list[Tensor] = []

    def keep_input(value: Tensor, hook: Any) -> None:
        stream[:] = [value]

    def subtract(value: Tensor, hook: Any) -> Tensor:
        fired.add(layer)
        return value - edit(stream.pop()).to(value)

    return [(host.mlp_input_site(layer), keep_input), (host.mlp_out_site(layer), subtract)]
