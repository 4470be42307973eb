"""Llama with sliding windows: Mistral in every layer, Qwen2 and Qwen3 in the layers that say so.

Qwen's biases on q, k and v, and Qwen3's norms on queries and keys, are read as anywhere else.
"""

from tl_bilinear.hosts.hooked.decoder import Decoder


class MistralDecoder(Decoder):
    def windows(self) -> list[int | None]:
        return [self.config.sliding_window] * len(self.layers)


class QwenDecoder(Decoder):
    prepends_bos = False

    def windows(self) -> list[int | None]:
        return [layer.self_attn.sliding_window for layer in self.layers]
