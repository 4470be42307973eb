"""A decoder with Llama's names as HookedTransformer settings and weights; others are subclasses."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts.bridge import built_activation
from tl_bilinear.hosts.gates import activation_name, is_identity, known_gate
from tl_bilinear.hosts.hooked.rotary import rotary_settings

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")
"""Gates that transformers and HookedTransformer call by one name."""


def refusal(transformers_model: Any, reason: str) -> ValueError:
    """The error for what a HookedTransformer cannot hold."""
    return ValueError(
        f"a HookedTransformer cannot hold this {type(transformers_model).__name__}: {reason}. Load "
        'it with host="transformer_bridge"'
    )


class Decoder:
    """Llama, and the contract of the other classes: a subclass says what differs.

    Everything is read from the built modules where they say it. Nothing is copied: the
    tensors of `state` are views of the transformers model's, products apart.
    """

    norm_type = "RMS"
    prepends_bos = True
    """Whether TransformerLens puts BOS first by default; the same as on its bridge."""

    def __init__(self, transformers_model: Any):
        self.model = transformers_model
        self.config = transformers_model.config
        self.layers = list(transformers_model.model.layers)
        attention = self.config.num_attention_heads
        self.n_heads: int = attention
        self.n_kv_heads: int = self.config.num_key_value_heads
        self.d_model: int = self.config.hidden_size
        self.d_head: int = (
            getattr(self.config, "head_dim", None) or self.config.hidden_size // attention
        )
        self.d_mlp: int = self.config.intermediate_size

    def refuse(self, reason: str) -> ValueError:
        return refusal(self.model, reason)

    # ---- settings ------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Arguments of HookedTransformerConfig, dtype and device apart.

        Raises:
            ValueError: for what a HookedTransformer has no place for.
        """
        return {
            "n_layers": len(self.layers),
            "d_model": self.d_model,
            "n_ctx": self.config.max_position_embeddings,
            "d_head": self.d_head,
            "n_heads": self.n_heads,
            "n_key_value_heads": None if self.n_kv_heads == self.n_heads else self.n_kv_heads,
            "d_mlp": self.d_mlp,
            "d_vocab": self.config.vocab_size,
            "act_fn": self._act_fn(),
            "gated_mlp": True,
            "normalization_type": self.norm_type,
            "final_rms": self.norm_type == "RMS",
            "eps": self._eps(),
            "attn_scale": self._attention_scale(),
            "use_qk_norm": hasattr(self.layers[0].self_attn, "q_norm"),
            "default_prepend_bos": self.prepends_bos,
            "original_architecture": type(self.model).__name__,
            "model_name": self.config.name_or_path or type(self.model).__name__,
            **self._window_settings(),
            **rotary_settings(self.model),
        }

    def windows(self) -> list[int | None]:
        """Per layer, how many positions back it attends; None: all of them."""
        return [None] * len(self.layers)

    def _window_settings(self) -> dict[str, Any]:
        windows = self.windows()
        sizes = {window for window in windows if window is not None}
        if len(sizes) > 1:
            raise self.refuse(f"its layers have windows of different sizes {sorted(sizes)}")
        if not sizes:
            return {}
        return {
            "use_local_attn": True,
            "window_size": int(sizes.pop()),
            "attn_types": ["global" if window is None else "local" for window in windows],
        }

    def _act_fn(self) -> str:
        names = {self._activation_name(built_activation(layer.mlp)) for layer in self.layers}
        if len(names) > 1:
            raise self.refuse(f"its layers have different gate activations {sorted(names)}")
        return names.pop()

    def _activation_name(self, activation: Callable[..., Any] | None) -> str:
        if is_identity(activation):
            return "bilinear"
        gate = None if activation is None else known_gate(activation)
        if gate is None or gate.activation not in ACTIVATIONS:
            raise self.refuse(
                f"its gate activation {activation_name(activation)} is not known there"
            )
        return gate.activation

    def _eps(self) -> float:
        norms = [
            self.model.model.norm,
            *(norm for layer in self.layers for norm in norms_of(layer)),
        ]
        values = {
            float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 0))) for norm in norms
        }
        if len(values) > 1:
            raise self.refuse(f"its norms have different eps {sorted(values)}")
        return values.pop()

    def _attention_scale(self) -> float:
        scales = {float(layer.self_attn.scaling) for layer in self.layers}
        if len(scales) > 1:
            raise self.refuse(f"its layers scale attention differently {sorted(scales)}")
        return 1 / scales.pop()

    # ---- weights -------------------------------------------------------------------------

    def state(self, *, stored: bool = False) -> dict[str, Float[Tensor, "..."]]:
        """Every parameter of the HookedTransformer, by its name there; views where they can be.

        Args:
            stored: as the transformers model stores them, `as_held` left out.
        """
        head = self.model.lm_head
        state = {
            "embed.W_E": self.model.model.embed_tokens.weight,
            "unembed.W_U": head.weight.T,
            "unembed.b_U": bias_of(head, self.config.vocab_size),
            **self.norm("ln_final", self.model.model.norm),
        }
        for index, layer in enumerate(self.layers):
            block = {
                **self.norms(layer),
                **{f"attn.{key}": value for key, value in self.attention(layer.self_attn).items()},
                **{f"mlp.{key}": value for key, value in self.mlp(layer.mlp).items()},
            }
            state |= {f"blocks.{index}.{key}": value for key, value in block.items()}
        return {
            key: value.detach() if stored else self.as_held(key, value.detach())
            for key, value in state.items()
        }

    def as_held(self, name: str, stored: Tensor) -> Tensor:
        """A stored tensor as a HookedTransformer holds it."""
        return stored

    def as_stored(self, name: str, held: Tensor) -> Tensor:
        """The inverse of `as_held`."""
        return held

    def norms(self, layer: Any) -> dict[str, Tensor]:
        """The norms of a block."""
        return {
            **self.norm("ln1", layer.input_layernorm),
            **self.norm("ln2", layer.post_attention_layernorm),
        }

    def norm(self, name: str, norm: Any) -> dict[str, Tensor]:
        """One norm's gain, and its bias where it has one."""
        return {f"{name}.w": norm.weight}

    def attention(self, attention: Any) -> dict[str, Tensor]:
        # HookedTransformer names K and V with an underscore where several heads share them.
        shared = "" if self.n_kv_heads == self.n_heads else "_"
        state = {
            "W_O": rearrange(attention.o_proj.weight, "m (n h) -> n h m", n=self.n_heads),
            "b_O": bias_of(attention.o_proj, self.d_model),
        }
        for letter, (weight, bias) in self.projections(attention).items():
            heads = self.n_heads if letter == "Q" else self.n_kv_heads
            under = "" if letter == "Q" else shared
            state[f"{under}W_{letter}"] = rearrange(weight, "(n h) m -> n m h", n=heads)
            state[f"{under}b_{letter}"] = rearrange(bias, "(n h) -> n h", n=heads)
        for name in ("q_norm", "k_norm"):
            if hasattr(attention, name):
                state |= self.norm(name, getattr(attention, name))
        return state

    def projections(self, attention: Any) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Weight and bias of Q, K and V."""
        modules = {"Q": attention.q_proj, "K": attention.k_proj, "V": attention.v_proj}
        return {
            letter: (module.weight, bias_of(module, module.weight.shape[0]))
            for letter, module in modules.items()
        }

    def mlp(self, mlp: Any) -> dict[str, Tensor]:
        state = {"W_out": mlp.down_proj.weight.T, "b_out": bias_of(mlp.down_proj, self.d_model)}
        gate, left_bias, up, right_bias = self.gates(mlp)
        state |= {"W_gate": gate.T, "W_in": up.T, "b_in": right_bias}
        return {**state, "b_gate": left_bias} if self.holds_gate_biases() else state

    def holds_gate_biases(self) -> bool:
        """Whether the MLPs need a component that has b_gate, unlike GatedMLP."""
        mlps = [layer.mlp for layer in self.layers]
        biased = any(bias.any() for mlp in mlps for bias in self.gates(mlp)[1::2])
        return biased or all(is_identity(built_activation(mlp)) for mlp in mlps)

    def gates(self, mlp: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weight and bias of the gate, then of the input it is multiplied with."""
        gate, up = mlp.gate_proj, mlp.up_proj
        return gate.weight, bias_of(gate, self.d_mlp), up.weight, bias_of(up, self.d_mlp)


def norms_of(layer: Any) -> list[Any]:
    """Every norm inside a transformers block, those of queries and keys included."""
    return [
        module
        for name, module in layer.named_modules()
        if "norm" in name and not list(module.children()) and hasattr(module, "weight")
    ]


def bias_of(module: Any, size: int) -> Float[Tensor, " size"]:
    """A linear map's bias; zeros where there is none."""
    if module.bias is not None:
        return module.bias
    return torch.zeros(size, dtype=module.weight.dtype, device=module.weight.device)
