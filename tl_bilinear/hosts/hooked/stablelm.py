"""StableLM: LayerNorm with biases, part of each head rotated, attention and MLP maybe parallel."""

from typing import Any

from torch import Tensor

from tl_bilinear.hosts.hooked.decoder import Decoder


class StableLmDecoder(Decoder):
    norm_type = "LN"

    def settings(self) -> dict[str, Any]:
        if self.config.qk_layernorm:
            raise self.refuse("it has LayerNorms on queries and keys, each head its own")
        return {**super().settings(), "parallel_attn_mlp": self.config.use_parallel_residual}

    def norms(self, layer: Any) -> dict[str, Tensor]:
        # In parallel both read through the one norm, which TransformerLens holds twice.
        second = layer.post_attention_layernorm or layer.input_layernorm
        return {**self.norm("ln1", layer.input_layernorm), **self.norm("ln2", second)}

    def norm(self, name: str, norm: Any) -> dict[str, Tensor]:
        return {f"{name}.w": norm.weight, f"{name}.b": norm.bias}
