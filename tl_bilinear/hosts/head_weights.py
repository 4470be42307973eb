"""A layer's attention as linear maps of the normalised stream, for given patterns.

Head h at position q reads sum_p A[q, p] (x_p W_V + b_V) and writes it through W_O. With the norm's
gain, bias and centring folded in, x is the normalised stream (`hook_normalized`).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts.host import AbstractHost


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """What a layer's heads read and write, in float64; shared values are repeated per head."""

    W_V: Float[Tensor, "head d_model d_head"]
    b_V: Float[Tensor, "head d_head"]
    W_O: Float[Tensor, "head d_head d_model"]
    b_O: Float[Tensor, " d_model"]

    def values(self, x: Float[Tensor, "place d_model"]) -> Float[Tensor, "head place d_head"]:
        """x W_V, without the bias."""
        return x @ self.W_V

    def write(self, z: Float[Tensor, "head place d_head"]) -> Float[Tensor, "place d_model"]:
        """The sum of what the heads write, without b_O."""
        return torch.einsum("hpe,hed->pd", z, self.W_O)


def head_weights(host: AbstractHost, layer: int) -> HeadWeights:
    """The value and output weights of a layer, the norm before it folded in."""
    attention, norm = host._block(layer).attn, host.attention_norm(layer)
    W_O = host.W_O(layer).detach().double()
    W_V = _per_head(host, attention.W_V.detach().double())
    bias = host._optional(lambda: attention.b_V)
    b_V = torch.zeros_like(W_V[:, 0]) if bias is None else bias.detach().double()
    b_V = _per_head(host, b_V.reshape(-1, W_V.shape[-1]))
    if norm.bias is not None:
        b_V = b_V + norm.bias.double() @ W_V
    if norm.gain is not None:
        W_V = norm.gain.double()[:, None] * W_V
    if norm.centred:
        W_V = W_V - W_V.mean(1, keepdim=True)
    return HeadWeights(W_V, b_V, W_O, host.b_O(layer).detach().double())


def pattern_site(layer: int) -> str:
    """Hook of the attention patterns, [batch, n_heads, query, key]."""
    return f"blocks.{layer}.attn.hook_pattern"


def _per_head(host: AbstractHost, weight: Tensor) -> Tensor:
    return weight.repeat_interleave(host.n_heads // len(weight), dim=0)
