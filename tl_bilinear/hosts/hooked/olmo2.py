"""OLMo2: norms behind the sublayers only, and norms over all queries or keys at once.

TransformerLens knows both by the architecture's name: ln1 and ln2 then stand behind attention
and MLP, and q_norm and k_norm are as wide as all their heads.
"""

from typing import Any

from torch import Tensor

from tl_bilinear.hosts.hooked.decoder import Decoder


class Olmo2Decoder(Decoder):
    def settings(self) -> dict[str, Any]:
        if self.n_heads * self.d_head != self.d_model:
            raise self.refuse(
                f"its queries are {self.n_heads * self.d_head} wide and its stream {self.d_model}, "
                "where TransformerLens' norm on queries takes them to be equal"
            )
        return {**super().settings(), "use_qk_norm": False}  # that would be a norm per head

    def norms(self, layer: Any) -> dict[str, Tensor]:
        return {
            **self.norm("ln1", layer.post_attention_layernorm),
            **self.norm("ln2", layer.post_feedforward_layernorm),
        }
