"""The bases of an edit: what each layer may read and write.

down_projection   any change of W_out (low rank in the end)
contrastive       readers: components of the MLP's hidden products that forgotten prompts use,
                  and retained ones and text do not (`contrastive_directions`); any writers
units             one number per hidden unit: how much of it is left
eigenmodes        one number per given mode: how much of lambda (v.x)^2 along u is added
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.decompositions import Mode
from tl_bilinear.decompositions.mode import by_layer, stacked
from tl_bilinear.hosts import AbstractHost
from tl_bilinear.unlearning.contrast import contrastive_directions
from tl_bilinear.unlearning.layer_basis import LayerBasis

BasisName = Literal["down_projection", "contrastive", "units", "eigenmodes"]


def down_projections(host: AbstractHost, layers: Sequence[int]) -> list[LayerBasis]:
    """Every entry of W_out."""
    return [LayerBasis(layer, _d_mlp(host, layer), host.d_model) for layer in layers]


def hidden_units(host: AbstractHost, layers: Sequence[int]) -> list[LayerBasis]:
    """theta_k is what is added to unit k's amplitude: -1 takes it out."""
    return [
        LayerBasis(
            layer,
            _d_mlp(host, layer),
            host.d_model,
            torch.eye(_d_mlp(host, layer), dtype=torch.float64, device=host.device),
            host.mlp_weights(layer).tensor.out.mT.clone(),
            paired=True,
        )
        for layer in layers
    ]


def contrastive_features(
    forget: Sequence[Float[Tensor, "d_mlp d_mlp"]],
    retain: Sequence[Float[Tensor, "d_mlp d_mlp"]],
    layers: Sequence[int],
    d_model: int,
    k: int,
) -> list[LayerBasis]:
    """The k components of each layer's hidden products with the largest forget share."""
    found = []
    for layer, f, r in zip(layers, forget, retain, strict=True):
        readers = contrastive_directions(f, r, min(k, len(f))).readers
        found.append(LayerBasis(layer, len(f), d_model, readers))
    return found


def eigenmode_amplitudes(host: AbstractHost, modes: Sequence[Mode]) -> list[LayerBasis]:
    """theta_k is what is added to mode k's amplitude: -1 takes it out, as `ablate` does."""
    found = []
    for layer, group in by_layer(modes).items():
        unique, index = torch.unique(stacked(group, "direction"), dim=0, return_inverse=True)
        # Row c of pinv(U)^T moves u_c . y by one and every other u . y by nothing.
        unit = torch.linalg.pinv(unique).mT[index]
        values = torch.tensor([mode.eigenvalue for mode in group], dtype=torch.float64).to(unit)
        found.append(
            LayerBasis(
                layer,
                host.d_model,
                host.d_model,
                stacked(group, "eigenvector"),
                values[:, None] * unit,
                squares=True,
                paired=True,
            )
        )
    return found


def with_amplitudes(modes: Sequence[Mode], theta: Mapping[int, Tensor]) -> tuple[Mode, ...]:
    """Modes that `ablate` and `ablate_` take out to make the edit theta; layer by layer."""
    found: list[Mode] = []
    for layer, amplitudes in theta.items():
        group = [mode for mode in modes if mode.layer == layer]
        found += [
            replace(mode, eigenvalue=-float(amplitude) * mode.eigenvalue)
            for mode, amplitude in zip(group, amplitudes, strict=True)
        ]
    return tuple(found)


def _d_mlp(host: AbstractHost, layer: int) -> int:
    return host.mlp_weights(layer).tensor.rank
