"""What every component adds to a target directly: embedding, heads, MLPs, biases.

The stream before the final norm is a sum over components, so with the norm's denominator
frozen each adds its own dot product with the target's direction (direct effects, as in
Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"). Nothing is left
over: `discrepancy` is rounding.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.prompts import Text
from tl_bilinear.hosts.provenance import Provenance, provenance
from tl_bilinear.hosts.reading import (
    Positions,
    Reading,
    denominators,
    directions,
    take_reading,
    target_values,
)
from tl_bilinear.hosts.target import Target, readout_bias
from tl_bilinear.hosts.writing import (
    attention_writing,
    frozen_maps,
    mlp_writing,
    require_additive,
    writing_hooks,
)


@dataclass(frozen=True, eq=False)
class ComponentAttribution:
    """Direct effects on a target, in logits."""

    sites: tuple[str, ...]
    embedding: Float[Tensor, "batch site"]
    heads: Float[Tensor, "layer batch site head"]
    attention_bias: Float[Tensor, "layer batch site"]
    mlps: Float[Tensor, "layer batch site"]
    bias: Float[Tensor, " site"]
    """Unembedding bias and final norm's bias."""
    target: Float[Tensor, "batch site"]
    """The model's own value, from its logits."""
    provenance: Provenance

    @property
    def total(self) -> Float[Tensor, "batch site"]:
        """The sum of all parts."""
        layers = self.heads.sum(-1) + self.attention_bias + self.mlps
        return self.embedding + layers.sum(0) + self.bias

    @property
    def discrepancy(self) -> Float[Tensor, "batch site"]:
        """Target minus total: rounding error, or something is wrong."""
        return self.target - self.total


def attribute_components(
    model: Any, text: Text | Any, target: Target, *, positions: Positions = "last"
) -> ComponentAttribution:
    """Direct effect of each component on a target, in float64.

    MLPs count with their whole output, so gated ones are as exact as bilinear ones: nothing of
    a gate is frozen here.

    Args and errors as for `attribute_modes`. Cost: one forward pass per appended string of
    tokens; O(n_layers * n_heads * d_head * d_model) per prompt.
    """
    host = get_host(model)
    require_additive(host)
    layers = range(host.n_layers)
    hooks = [host.embedding_site()]
    hooks += [site(layer) for layer in layers for site in (host.head_site, host.mlp_out_site)]
    hooks += [hook for layer in layers for hook in writing_hooks(host, layer)]
    reading = take_reading(host, text, target, hooks, positions)
    u = directions(host, reading)
    rho = denominators(host, reading)

    attention = [_attention(host, layer, reading) for layer in layers]
    return ComponentAttribution(
        sites=reading.labels(),
        embedding=(reading.values[host.embedding_site()] * u).sum(-1) / rho,
        heads=torch.stack([heads for heads, _ in attention]),
        attention_bias=torch.stack([bias for _, bias in attention]),
        mlps=torch.stack([_mlp(host, layer, reading) for layer in layers]),
        bias=torch.stack([readout_bias(host, readout) for readout in reading.readouts]),
        target=target_values(host, reading),
        provenance=provenance(host, frozen_maps(host), "none"),
    )


def _mlp(host: AbstractHost, layer: int, reading: Reading) -> Float[Tensor, "batch site"]:
    writing = mlp_writing(host, reading, layer)
    value = reading.values[host.mlp_out_site(layer)]
    return (value * writing.direction).sum(-1) / writing.scale + writing.offset


def _attention(
    host: AbstractHost, layer: int, reading: Reading
) -> tuple[Float[Tensor, "batch site head"], Float[Tensor, "batch site"]]:
    """Each head's share, and that of b_O with the post-norm's bias."""
    writing = attention_writing(host, reading, layer)
    z = reading.values[host.head_site(layer)]
    z = z.unflatten(-1, (host.n_heads, host.d_head))
    # u is mapped back through W_O once instead of every head's value forward.
    back = torch.einsum("hed,sd->she", host.W_O(layer).detach().double(), writing.direction)
    heads = torch.einsum("bshe,she->bsh", z, back) / writing.scale[..., None]
    bias = host.b_O(layer).detach().double() @ writing.direction.T
    return heads, bias / writing.scale + writing.offset
