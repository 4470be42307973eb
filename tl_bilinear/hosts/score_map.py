"""How one head scores every key for one query on a prompt, its norms and rotation frozen."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts.attention import (
    attention_input_site,
    folded_attention_weights,
    head_gain,
    n_key_value_heads,
    pattern_site,
    score_rule,
)
from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.hosts.norm import Norm
from tl_bilinear.hosts.rotation import is_rotary, rotations
from tl_bilinear.hosts.self_check import TOLERANCES

UNDERFLOW = -16.0
"""Logarithm of a probability that float16 rounds to zero."""


@dataclass(frozen=True, eq=False)
class ScoreMap:
    """`(x_q query + query_bias) . (x_k keys[k] + key_biases[k]) / scale`.

    x is the normalised stream.
    """

    query: Float[Tensor, "d_model d_head"]
    query_bias: Float[Tensor, " d_head"]
    keys: Float[Tensor, "pos d_model d_head"]
    key_biases: Float[Tensor, "pos d_head"]
    scale: float
    softcap: float | None
    seen: tuple[int, ...]
    """The keys that the query's softmax runs over."""
    frozen: tuple[str, ...]
    """What was taken from the forward pass."""


def read_score_map(
    host: AbstractHost, layer: int, head: int, query: int, values: Mapping[str, Tensor]
) -> ScoreMap:
    """The map of one head and one query, for all keys up to it.

    It is checked against the model: the softmax of its scores must be the model's own pattern.

    Args:
        values: of `attention_input_site`, `pattern_site` and `rotation_hooks`, for one prompt.

    Raises:
        ValueError: a pattern that these scores do not give (a bias on scores, or another kind
            of rotation).
    """
    weights, rule = folded_attention_weights(host, layer), score_rule(host, layer)
    x = values[attention_input_site(host, layer)][0, : query + 1].double()
    turn = rotations(host, layer, query + 1, values)
    heads, kv = host.n_heads, n_key_value_heads(host)
    q_gain = _frozen_norm(rule.query_norm, x[-1:], weights.query, weights.query_bias, head, heads)
    k_gain = _frozen_norm(rule.key_norm, x, weights.key, weights.key_bias, head, kv)
    found = ScoreMap(
        query=(weights.query[head] * q_gain[0]) @ turn[query],
        query_bias=(weights.query_bias[head] * q_gain[0]) @ turn[query],
        keys=(weights.key[head] * k_gain[:, None]) @ turn,
        key_biases=((weights.key_bias[head] * k_gain)[:, None] @ turn)[:, 0],
        scale=rule.scale,
        softcap=rule.softcap,
        seen=(),
        frozen=_frozen(host, layer, rule.query_norm.exists),
    )
    return _checked(host, layer, head, query, found, x, values[pattern_site(layer)])


def _frozen_norm(
    norm: Norm, x: Tensor, weight: Tensor, bias: Tensor, head: int, n_heads: int
) -> Float[Tensor, "pos d_head"]:
    """What a norm multiplies this head's queries or keys by, its denominator frozen."""
    d_head, shared = weight.shape[-1], len(weight) // n_heads
    gain = head_gain(norm, head, shared, d_head).to(x)
    if not norm.exists:
        return gain.expand(len(x), -1)
    if norm.gain is None or norm.gain.numel() == d_head:  # per head
        raw = x @ weight[head] + bias[head]
    else:
        raw = torch.einsum("pd,hde->phe", x, weight[::shared]) + bias[::shared]
        raw = raw.flatten(1)
    return gain / (raw.square().mean(-1, keepdim=True) + norm.eps).sqrt()


def _checked(
    host: AbstractHost,
    layer: int,
    head: int,
    query: int,
    found: ScoreMap,
    x: Tensor,
    pattern: Tensor,
) -> ScoreMap:
    """The map with the keys that are seen, once its softmax over them is the model's pattern."""
    own = pattern[0, head, query, : query + 1].double()
    keys = torch.einsum("pd,pde->pe", x, found.keys) + found.key_biases
    scores = keys @ (x[query] @ found.query + found.query_bias) / found.scale
    if found.softcap is not None:
        scores = found.softcap * (scores / found.softcap).tanh()
    # A pattern of zero is a mask, or a softmax too small for the model's precision.
    own_total = scores[own > 0].logsumexp(0)
    seen = (own > 0) | (scores - own_total < UNDERFLOW)
    expected = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    error = float((expected - own).abs().max())
    if not error <= TOLERANCES[host.dtype]:
        raise ValueError(
            f"layer {layer}, head {head}: its pattern differs by {error:.1e} from the softmax of "
            f"the scores that its weights give (tolerance {TOLERANCES[host.dtype]:.0e}): this "
            "model's scores have parts that are not known here"
        )
    places = tuple(seen.nonzero()[:, 0].tolist())
    return ScoreMap(**{**vars(found), "seen": places})


def _frozen(host: AbstractHost, layer: int, inner_norms: bool) -> tuple[str, ...]:
    frozen = []
    if host.attention_norm(layer).exists:
        frozen.append(f"the denominators of layer {layer}'s norm")
    if inner_norms:
        frozen.append("the denominators of the norms on queries and keys")
    if is_rotary(host):
        frozen.append("rotations (functions of the positions alone)")
    return tuple(frozen)
