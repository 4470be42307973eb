"""A TransformerLens model's weights as transformers stores them; imports no transformers.

A bridge wraps a transformers model: its class, its configuration and its weights are taken
back out. A HookedTransformer and a natively built bridge become a Llama, whose settings are
read from the built model where it says them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts import get_host
from tl_bilinear.hosts.attention import n_key_value_heads
from tl_bilinear.hosts.bridge import TransformerBridgeHost
from tl_bilinear.hosts.gates import is_identity
from tl_bilinear.hosts.host import AbstractHost

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
}
WRAPPER = "._original_component"


@dataclass(frozen=True, eq=False)
class WrappedModel:
    """The transformers model inside a bridge."""

    model_class: type
    config: Any
    """transformers' own configuration object; not a copy."""
    state: Mapping[str, Tensor]
    """By transformers' names, live; the bridge's aliases of the same tensors are in it too."""


@dataclass(frozen=True, eq=False)
class LlamaParts:
    """What a LlamaForCausalLM with the same log-probabilities is made of."""

    settings: Mapping[str, Any]
    """Arguments of LlamaConfig."""
    state: Mapping[str, Tensor]
    """By transformers' names, each tensor in memory of its own."""


def wrapped_model(model: Any) -> WrappedModel | None:
    """The transformers model that a bridge wraps; None for everything else.

    The weights are those of the bridge now: edits and weight processing are in them.
    """
    original = getattr(get_host(model).model, "original_model", None)
    config = getattr(original, "config", None)
    if original is None or not hasattr(config, "to_diff_dict"):
        return None  # a HookedTransformer, or a native bridge
    state: dict[str, Tensor] = {}
    for name, value in original.state_dict().items():
        state.setdefault(name.replace(WRAPPER, ""), value.detach())
    return WrappedModel(type(original), config, state)


def llama_parts(model: Any) -> LlamaParts:
    """A HookedTransformer or native bridge, weights as they are now, as a Llama.

    Folded norms become gains of one; grouped heads stay grouped; biases that are all zero are
    left out; embeddings that are equal are tied.

    Raises:
        ValueError: what this model has and no Llama can hold.
    """
    host = get_host(model)
    _require_llama(host)
    state = {
        "model.embed_tokens.weight": host.W_E,
        "model.norm.weight": _gain(host, host.final_norm()),
        "lm_head.weight": host.W_U.T,
    }
    for layer in range(host.n_layers):
        to = f"model.layers.{layer}."
        state[to + "input_layernorm.weight"] = _gain(host, host.attention_norm(layer))
        state[to + "post_attention_layernorm.weight"] = _gain(host, host.mlp_norm(layer))
        state |= {f"{to}self_attn.{k}": v for k, v in _attention(host, layer).items()}
        state |= {f"{to}mlp.{k}": v for k, v in _mlp(host, layer).items()}
    tied = torch.equal(state["model.embed_tokens.weight"], state["lm_head.weight"])
    if tied:
        del state["lm_head.weight"]
    biased = {}
    for part in (".self_attn.", ".mlp."):
        biases = [name for name in state if part in name and name.endswith(".bias")]
        biased[part] = any(bool(state[name].count_nonzero()) for name in biases)
        if not biased[part]:
            for name in biases:
                del state[name]
    settings = {
        **_settings(host),
        "tie_word_embeddings": tied,
        "attention_bias": biased[".self_attn."],
        "mlp_bias": biased[".mlp."],
    }
    copied = {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
    }
    return LlamaParts(settings, copied)


def _settings(host: AbstractHost) -> dict[str, Any]:
    cfg = host.model.cfg
    tokenizer = host.model.tokenizer
    heads = n_key_value_heads(host)
    return {
        "hidden_act": _hidden_act(host),
        "hidden_size": host.d_model,
        "intermediate_size": host.d_mlp,
        "num_hidden_layers": host.n_layers,
        "num_attention_heads": host.n_heads,
        "num_key_value_heads": heads,
        "head_dim": host.d_head,
        "max_position_embeddings": host.n_ctx,
        "vocab_size": host.d_vocab,
        "rms_norm_eps": float(host.final_norm().eps),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(cfg.rotary_base)},
        "bos_token_id": getattr(tokenizer, "bos_token_id", None),
        "eos_token_id": getattr(tokenizer, "eos_token_id", None),
        "pad_token_id": getattr(tokenizer, "pad_token_id", None),
    }


def _hidden_act(host: AbstractHost) -> str:
    activations = [host.gate_activation(layer) for layer in range(host.n_layers)]
    if all(act is None or is_identity(act) for act in activations):
        return "linear"
    name = str(host.model.cfg.act_fn).lower()
    if name not in ACTIVATIONS or any(act is None or is_identity(act) for act in activations):
        raise ValueError(f"this model cannot be saved as a Llama: its gate is {name!r}")
    return ACTIVATIONS[name]


def _require_llama(host: AbstractHost) -> None:
    """Everything that the configuration can turn on and a Llama does not have."""
    cfg = host.model.cfg

    def setting(name: str, default: Any = None) -> Any:
        return getattr(cfg, name, default)

    norms, behind = [host.final_norm()], []
    for layer in range(host.n_layers):
        norms += [host.attention_norm(layer), host.mlp_norm(layer)]
        behind += [host.attention_post_norm(layer), host.mlp_post_norm(layer)]
    query_norms = [host._optional(lambda at=block.attn: at.q_norm) for block in host.model.blocks]
    scale = setting("attn_scale", -1.0)
    rotary_dim = setting("rotary_dim") or host.d_head
    reasons = {
        "LayerNorm (a Llama has RMSNorm)": any(norm.centred for norm in norms),
        "no norm (a Llama always normalises)": not all(norm.exists for norm in norms),
        "norms with different eps": len({float(norm.eps) for norm in norms if norm.exists}) > 1,
        "positions that are not rotary (positional_embedding_type "
        f"{setting('positional_embedding_type')!r})": setting("positional_embedding_type")
        != "rotary",
        f"rotation of {rotary_dim} of {host.d_head} dimensions": rotary_dim != host.d_head,
        "rotary scaling": setting("use_NTK_by_parts_rope", False)
        or setting("use_yarn_rope", False)
        or setting("use_dynamic_ntk_rope", False)
        or setting("rotary_scaling_factor", 1.0) != 1.0
        or isinstance(setting("rope_scaling"), dict),
        f"an attention scale of {scale}": not setting("use_attn_scale", True)
        or (scale > 0 and not math.isclose(scale, math.sqrt(host.d_head), rel_tol=1e-6)),
        "an attention scale by layer": setting("scale_attn_by_inverse_layer_idx", False),
        "attention and MLP in parallel": setting("parallel_attn_mlp", False),
        "local attention": setting("use_local_attn", False),
        "attention to later positions": setting("attention_dir", "causal") != "causal",
        "norms on queries and keys": setting("use_qk_norm", False)
        or any(norm is not None for norm in query_norms),
        "norms behind the sublayers": any(norm.exists for norm in behind),
        "softcaps": max(
            setting("output_logits_soft_cap", -1.0) or -1.0,
            setting("attn_scores_soft_cap", -1.0) or -1.0,
        )
        > 0,
        "an unembedding bias": bool(host.b_U.count_nonzero()),
        "an unembedding onto another vocabulary": host.W_E.shape[0] != host.d_vocab,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise ValueError(
            f"this model cannot be saved as a Llama, which has no place for: {'; '.join(found)}"
        )


def _gain(host: AbstractHost, norm: Any) -> Tensor:
    if norm.gain is not None:
        return norm.gain
    return torch.ones(host.d_model, dtype=host.dtype, device=host.device)


def _attention(host: AbstractHost, layer: int) -> dict[str, Tensor]:
    attention = host.model.blocks[layer].attn
    state = {
        "o_proj.weight": rearrange(host.W_O(layer), "n h m -> m (n h)"),
        "o_proj.bias": host.b_O(layer),
    }
    for letter in "QKV":
        # A HookedTransformer expands shared heads under the plain name.
        name = f"_W_{letter}" if hasattr(attention, f"_W_{letter}") else f"W_{letter}"
        weight = getattr(attention, name)
        heads = host.n_heads if letter == "Q" else n_key_value_heads(host)
        if weight.shape[0] != heads:
            raise ValueError(
                f"layer {layer}: {name} has {weight.shape[0]} heads, the configuration {heads}: "
                "this model cannot be saved"
            )
        try:
            bias = getattr(attention, name.replace("W", "b"))
        except (AttributeError, TypeError):
            bias = None
        bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
        if letter != "V" and _rotates_adjacent_pairs(host):
            weight, bias = _in_halves(weight), _in_halves(bias)
        to = f"{letter.lower()}_proj"
        state[to + ".weight"] = rearrange(weight, "n m h -> (n h) m")
        state[to + ".bias"] = rearrange(bias, "n h -> (n h)")
    return state


def _rotates_adjacent_pairs(host: AbstractHost) -> bool:
    # A native bridge always does, whatever its configuration says.
    native = isinstance(host, TransformerBridgeHost) and wrapped_model(host.model) is None
    return native or bool(getattr(host.model.cfg, "rotary_adjacent_pairs", False))


def _in_halves(value: Float[Tensor, "*axes d_head"]) -> Float[Tensor, "*axes d_head"]:
    """Rotated pairs (0, 1), (2, 3), ... to where a Llama has them: (0, h/2), (1, h/2 + 1), ...

    Queries and keys are permuted alike, so their products stay.
    """
    return torch.cat([value[..., 0::2], value[..., 1::2]], -1)


def _mlp(host: AbstractHost, layer: int) -> dict[str, Tensor]:
    weights = host.mlp_weights(layer)
    if host.adds_bias_behind(layer) and weights.right_bias.count_nonzero():
        raise ValueError(
            f"layer {layer}: TransformerLens' GatedMLP adds b_in behind the product, where no "
            "Llama has a bias: this model cannot be saved"
        )
    return {
        "gate_proj.weight": weights.tensor.left.T,
        "up_proj.weight": weights.tensor.right.T,
        "down_proj.weight": weights.tensor.out,
        "gate_proj.bias": weights.left_bias,
        "up_proj.bias": weights.right_bias,
        "down_proj.bias": weights.out_bias,
    }
