"""Classes that store several maps as one matrix: Phi3 (q, k, v; gate, up) and GLM (gate, up)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tl_bilinear.hosts.hooked.decoder import Decoder, bias_of


class FusedGateDecoder(Decoder):
    def gates(self, mlp: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        both = mlp.gate_up_proj
        gate, up = both.weight.chunk(2)
        left_bias, right_bias = bias_of(both, 2 * self.d_mlp).chunk(2)
        return gate, left_bias, up, right_bias


class Phi3Decoder(FusedGateDecoder):
    def windows(self) -> list[int | None]:
        return [self.config.sliding_window] * len(self.layers)

    def projections(self, attention: Any) -> Mapping[str, tuple[Tensor, Tensor]]:
        sizes = [heads * self.d_head for heads in (self.n_heads, self.n_kv_heads, self.n_kv_heads)]
        weights = attention.qkv_proj.weight.split(sizes)
        biases = bias_of(attention.qkv_proj, sum(sizes)).split(sizes)
        return dict(zip("QKV", zip(weights, biases, strict=True), strict=True))


class GlmDecoder(FusedGateDecoder):
    prepends_bos = False

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "rotary_adjacent_pairs": True}
