"""A layer's heads as linear maps of the normalised stream, for given patterns.

Head h at position q reads sum_p A[q, p] (x_p W_V + b_V) and writes it through W_O.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts.attention import folded_attention_weights
from tl_bilinear.hosts.host import AbstractHost


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """What a layer's heads read and write, in float64; the norm before them is folded in."""

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
    """The value and output weights of a layer."""
    weights = folded_attention_weights(host, layer)
    return HeadWeights(weights.value, weights.value_bias, weights.out, weights.out_bias)
