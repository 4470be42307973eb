"""Gemma 1 to 3: gains of 1 + w, a scaled embedding, norms behind the sublayers, softcaps."""

from typing import Any

import torch
from torch import Tensor

from tl_bilinear.hosts.hooked.decoder import Decoder


class GemmaDecoder(Decoder):
    def settings(self) -> dict[str, Any]:
        if getattr(self.config, "use_bidirectional_attention", False):
            raise self.refuse("its attention reads later positions")
        return super().settings()

    def as_held(self, name: str, stored: Tensor) -> Tensor:
        if name == "embed.W_E":
            return stored * self._embedding_scale(stored)
        if not name.endswith(".w"):
            return stored
        # transformers adds in float32, or above; what half precision then loses is rounding.
        gain = 1.0 + stored.to(torch.promote_types(stored.dtype, torch.float32))
        return gain.to(stored.dtype)

    def as_stored(self, name: str, held: Tensor) -> Tensor:
        if name == "embed.W_E":
            return held / self._embedding_scale(held)
        return held - 1.0 if name.endswith(".w") else held

    def _embedding_scale(self, like: Tensor) -> Tensor:
        embed = self.model.model.embed_tokens
        return torch.tensor(embed.scalar_embed_scale, device=like.device).to(like.dtype)


class Gemma2Decoder(GemmaDecoder):
    def settings(self) -> dict[str, Any]:
        return {
            **super().settings(),
            "use_normalization_before_and_after": True,
            "attn_scores_soft_cap": self.config.attn_logit_softcapping or -1.0,
            "output_logits_soft_cap": self.config.final_logit_softcapping or -1.0,
        }

    def windows(self) -> list[int | None]:
        return [layer.self_attn.sliding_window for layer in self.layers]

    def norms(self, layer: Any) -> dict[str, Tensor]:
        return {
            **self.norm("ln1", layer.input_layernorm),
            **self.norm("ln1_post", layer.post_attention_layernorm),
            **self.norm("ln2", layer.pre_feedforward_layernorm),
            **self.norm("ln2_post", layer.post_feedforward_layernorm),
        }


class Gemma3Decoder(Gemma2Decoder):
    """Gemma 2 with norms on queries and keys, and a rotation for each kind of layer."""
