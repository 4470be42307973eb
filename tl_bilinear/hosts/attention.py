"""A layer's attention: its weights as maps of the normalised stream, and how it makes scores.

The two hosts differ in orientation, in how grouped heads are stored, and in where scale and
softcap stand; that is settled here. What a head reads is `attention_input_site`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.hosts.norm import NO_NORM, Norm


@dataclass(frozen=True, eq=False)
class AttentionWeights:
    """Per head, in TransformerLens' orientation (`x @ W + b`); grouped keys and values repeated."""

    query: Float[Tensor, "n_heads d_model d_head"]
    query_bias: Float[Tensor, "n_heads d_head"]
    key: Float[Tensor, "n_heads d_model d_head"]
    key_bias: Float[Tensor, "n_heads d_head"]
    value: Float[Tensor, "n_heads d_model d_head"]
    value_bias: Float[Tensor, "n_heads d_head"]
    out: Float[Tensor, "n_heads d_head d_model"]
    out_bias: Float[Tensor, " d_model"]

    def values(self, x: Float[Tensor, "place d_model"]) -> Float[Tensor, "n_heads place d_head"]:
        """x W_V, without the bias."""
        return x @ self.value

    def write(self, z: Float[Tensor, "n_heads place d_head"]) -> Float[Tensor, "place d_model"]:
        """The sum of what the heads write, without b_O."""
        return torch.einsum("hpe,hed->pd", z, self.out)


@dataclass(frozen=True, eq=False)
class ScoreRule:
    """`score = softcap(q . k / scale)`, q and k after their own norms and the rotation."""

    scale: float
    softcap: float | None
    """c where the score is c tanh(q . k / (scale c))."""
    query_norm: Norm
    """Between projection and rotation (Qwen3, Gemma 3: per head; OLMo2: over all heads)."""
    key_norm: Norm


def attention_weights(host: AbstractHost, layer: int) -> AttentionWeights:
    """A layer's weights as maps of the stream that the norm's gain and bias have passed.

    In float64. A key or value that several heads share stands once for each of them.

    Raises:
        ValueError: if the layer does not exist.
    """
    found: dict[str, Tensor] = {}
    for name, letter in (("query", "Q"), ("key", "K"), ("value", "V")):
        weight, bias = _projection(host, layer, letter)
        for key, value in ((name, weight), (f"{name}_bias", bias)):
            found[key] = value.double().repeat_interleave(host.n_heads // len(value), 0)
    return AttentionWeights(
        out=host.W_O(layer).detach().double(),
        out_bias=host.b_O(layer).detach().double(),
        **found,
    )


def raw_attention_weights(host: AbstractHost, layer: int) -> Iterator[Tensor]:
    """The same as they are stored, views in their own dtype, a shared key or value once.

    Weights that a block does not have are left out: some architectures attend otherwise.
    """
    shared = {"Q": host.n_heads, "K": n_key_value_heads(host), "V": n_key_value_heads(host)}
    for letter, heads in shared.items():
        found = host._optional(lambda letter=letter: _projection(host, layer, letter))
        yield from (each[:: max(len(each) // heads, 1)] for each in found or ())
    if host._optional(lambda: host.W_O(layer)) is not None:
        yield from (host.W_O(layer), host.b_O(layer))


def _projection(host: AbstractHost, layer: int, letter: str) -> tuple[Tensor, Tensor]:
    """W and b of queries ("Q"), keys or values, as stored; b is zero where there is none."""
    attention = host._block(layer).attn
    weight = getattr(attention, f"W_{letter}").detach()
    bias = host._optional(lambda: getattr(attention, f"b_{letter}"))
    return weight, weight.new_zeros(weight[:, 0].shape) if bias is None else bias.detach()


def folded_attention_weights(host: AbstractHost, layer: int) -> AttentionWeights:
    """The same as maps of the normalised stream: gain, bias and centring of the norm folded in."""
    weights, norm = attention_weights(host, layer), host.attention_norm(layer)

    def fold(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        if norm.bias is not None:
            bias = bias + torch.einsum("d,hde->he", norm.bias.double(), weight)
        if norm.gain is not None:
            weight = norm.gain.double()[:, None] * weight
        if norm.centred:
            weight = weight - weight.mean(1, keepdim=True)
        return weight, bias

    query, query_bias = fold(weights.query, weights.query_bias)
    key, key_bias = fold(weights.key, weights.key_bias)
    value, value_bias = fold(weights.value, weights.value_bias)
    return AttentionWeights(
        query, query_bias, key, key_bias, value, value_bias, weights.out, weights.out_bias
    )


def score_rule(host: AbstractHost, layer: int) -> ScoreRule:
    """How a layer's heads make scores of queries and keys."""
    attention, cfg = host._block(layer).attn, host.model.cfg
    inner = getattr(attention, "original_component", attention)  # a HookedTransformer has no other
    if hasattr(inner, "attn_scale"):  # HookedTransformer
        scale, cap = inner.attn_scale, getattr(cfg, "attn_scores_soft_cap", None)
    elif hasattr(inner, "scaling"):  # transformers
        scale, cap = 1 / inner.scaling, getattr(inner, "attn_logit_softcapping", None)
    else:  # native
        scale = getattr(inner, "scale", host.d_head**0.5)
        cap = getattr(inner, "attn_scores_soft_cap", None)
    return ScoreRule(
        scale=float(scale),
        softcap=float(cap) if cap is not None and cap > 0 else None,
        query_norm=_inner_norm(host, attention, "q_norm"),
        key_norm=_inner_norm(host, attention, "k_norm"),
    )


def head_gain(norm: Norm, head: int, shared: int, d_head: int) -> Float[Tensor, " d_head"]:
    """One head's part of the gain of a norm on queries or keys; ones without one.

    Args:
        shared: how many heads share a key: OLMo2's norms are over all different heads at once.
    """
    if norm.gain is None:
        return torch.ones(d_head, dtype=torch.float64)
    return norm.gain.double().view(-1, d_head)[head // shared if norm.gain.numel() > d_head else 0]


def n_key_value_heads(host: AbstractHost) -> int:
    """How many different keys and values a layer has; n_heads where no heads share them."""
    return getattr(host.model.cfg, "n_key_value_heads", None) or host.n_heads


def attention_input_site(host: AbstractHost, layer: int) -> str:
    """Hook whose value `folded_attention_weights` reads."""
    if host.attention_norm(layer).exists:
        return f"blocks.{layer}.ln1.hook_normalized"
    return f"blocks.{layer}.hook_resid_pre"


def attention_scale_site(host: AbstractHost, layer: int) -> str | None:
    """Hook of the denominator of the norm before the attention; None without one."""
    return f"blocks.{layer}.ln1.hook_scale" if host.attention_norm(layer).exists else None


def mlp_scale_site(host: AbstractHost, layer: int) -> str | None:
    """Hook of the denominator of the norm before the MLP; None without one."""
    return f"blocks.{layer}.ln2.hook_scale" if host.mlp_norm(layer).exists else None


def pattern_site(layer: int) -> str:
    """Hook of the attention pattern, [batch, n_heads, query, key]; to be read on every host."""
    return f"blocks.{layer}.attn.hook_pattern"


def _inner_norm(host: AbstractHost, attention: Any, name: str) -> Norm:
    module = host._optional(lambda: getattr(attention, name))
    return NO_NORM if module is None else host._norm(module)
