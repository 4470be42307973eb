"""Contrastive modes of layers' outputs: what forgotten prompts use and retained text does not.

They need no bilinear MLP: of any layer's output y the generalised eigenproblem of the second
moments on forgotten and on retained prompts gives components, and an oblique projection takes them
out (`contrastive_directions`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.layers import checked_layers
from tl_bilinear.unlearning.answer_rows import answer_rows
from tl_bilinear.unlearning.contrast import (
    ContrastiveDirections,
    Moments,
    contrastive_directions,
    second_moment,
)
from tl_bilinear.unlearning.forget_set import require_forgettable
from tl_bilinear.unlearning.layer_basis import LayerBasis
from tl_bilinear.unlearning.question import Question
from tl_bilinear.unlearning.site_gradients import log_odds_gradients


@dataclass(frozen=True, eq=False)
class OutputModes:
    """Contrastive components of the MLPs' outputs, per layer."""

    layers: dict[int, ContrastiveDirections]

    @property
    def overlaps(self) -> dict[int, float]:
        """Per layer the cosine of the two second moments: 1 where nothing tells them apart."""
        return {layer: found.overlap for layer, found in self.layers.items()}

    @property
    def n_modes(self) -> int:
        return sum(found.k for found in self.layers.values())

    def truncate(self, k: int) -> "OutputModes":
        """The k of all layers with the largest forget share."""
        shares = [(float(s), layer) for layer, f in self.layers.items() for s in f.shares]
        kept = [layer for _, layer in sorted(shares, key=lambda each: -each[0])[:k]]
        return OutputModes(
            {
                layer: found.truncate(kept.count(layer))
                for layer, found in self.layers.items()
                if layer in kept
            }
        )

    @contextmanager
    def removed(self, model: Any) -> Iterator[Any]:
        """The model without these components of its MLPs' outputs, inside a `with` block."""
        host = get_host(model)
        hooks = []
        for layer, found in self.layers.items():

            def remove(value: Tensor, hook: object = None, found=found) -> Tensor:
                return found.removed(value)

            hooks.append((host.mlp_out_site(layer), remove))
        with host.hooks(hooks):
            yield model

    def remove_(self, model: Any) -> None:
        """Write the removal into W_out and the output bias: W_out @ P."""
        host = get_host(model)
        planned = []
        for layer, found in self.layers.items():
            weights = host.mlp_weights(layer)
            p = found.projection()
            planned.append((weights.tensor.out, p.to(weights.tensor.out)))
            planned.append((weights.out_bias, p.to(weights.out_bias)))
        with torch.no_grad():
            for weight, p in planned:
                weight.copy_(p.mT @ weight)


def output_modes(
    model: Any,
    forget: Sequence[Question],
    retain: Sequence[Question],
    *,
    k: int = 8,
    layers: Sequence[int] | None = None,
    moments: Moments = "gradients",
) -> OutputModes:
    """The k components per layer that the forgotten answers have the largest share of.

    Args:
        moments: "activations" compares what a layer writes at the prompts' tokens, "gradients"
            what the answers would have it write.

    Cost: a forward and some backward passes of all prompts, and O(d^3) per layer.

    Raises:
        ValueError: as `fit_edit` for the sets; as `contrastive_directions` for k.
    """
    host = get_host(model)
    forget, retain = require_forgettable(host, forget, retain)
    chosen = sorted(checked_layers(host, layers))
    mine, other = (_moments(host, each, chosen, moments) for each in (forget, retain))
    return OutputModes(
        {
            layer: contrastive_directions(mine[layer], other[layer], k, moments=moments)
            for layer in chosen
        }
    )


def _moments(
    host: AbstractHost, questions: Sequence[Question], layers: Sequence[int], moments: Moments
) -> dict[int, Tensor]:
    rows = answer_rows(host, questions)
    if moments == "activations":
        sites = {layer: host.mlp_out_site(layer) for layer in layers}
        _, values = host.read(rows.tokens, list(sites.values()))
        mask = torch.arange(rows.tokens.shape[1]) < rows.lengths[:, None]
        mask[:, 0] = False  # BOS is unlike any other
        return {layer: second_moment(values[site][mask]) for layer, site in sites.items()}
    bases = [LayerBasis(layer, host.d_model, host.d_model, squares=True) for layer in layers]
    zero = [(basis, torch.zeros(basis.shape)) for basis in bases]
    _, found = log_odds_gradients(host, rows, zero)
    return {layer: second_moment(found[layer].gradients) for layer in layers}
