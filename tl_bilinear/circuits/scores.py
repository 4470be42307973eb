"""A pattern's change as what queries and keys changed: the contrast goes on through the softmax.

For one query, with scores s_p and patterns A_p in two runs and L_p their logarithmic mean,
dA_p = L_p (ds_p - sum_r L_r ds_r / sum_r L_r) exactly: ln A_p is s_p up to one constant per run,
and (A1 - A0) / (ln A1 - ln A0) is L by definition. So values w_p at their mean are worth

    sum_p w_p dA_p = sum_p c_p ds_p        c_p = L_p (w_p - sum_r L_r w_r / sum_r L_r)

and ds_p = (dq . mean(k_p) + mean(q) . dk_p) / scale, q and k being linear in what they read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts.attention import folded_attention_weights, score_rule
from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.hosts.replay import Replay
from tl_bilinear.hosts.rotation import read_rotations

LIMIT = 1e-3
"""By how much recomputed patterns may differ from the model's, which may be half precision's."""


@dataclass(frozen=True, eq=False)
class ScoreStep:
    """What a step from scores back to queries and keys takes, for one layer of two runs."""

    query: Float[Tensor, "head d_model d_head"]
    key: Float[Tensor, "head d_model d_head"]
    turns: Float[Tensor, "place d_head d_head"]
    scale: float
    mean_queries: Float[Tensor, "head place d_head"]
    """Rotated."""
    mean_keys: Float[Tensor, "head place d_head"]
    weights: Float[Tensor, "head place place"]
    """L, queries then keys."""
    change: Float[Tensor, "head place place"]
    """ds where a key is seen; zero elsewhere."""

    def back(
        self, head: int, place: int, worth: Float[Tensor, " place"]
    ) -> tuple[float, Float[Tensor, " d_model"], Float[Tensor, "place d_model"]]:
        """For values worth w_p: sum_p w_p dA_p by the scores, and the directions of the
        normalised streams that the query and every key read."""
        weights = self.weights[head, place]
        c = weights * (worth - weights @ worth / weights.sum())
        share = float(c @ self.change[head, place])
        for_query = (c / self.scale) @ self.mean_keys[head]
        query = self.query[head] @ (self.turns[place] @ for_query)
        keys = torch.einsum("pef,f->pe", self.turns, self.mean_queries[head, place] / self.scale)
        return share, query, c[:, None] * (keys @ self.key[head].T)


def score_step(host: AbstractHost, runs: Sequence[Replay], layer: int) -> ScoreStep:
    """The step of one layer.

    Raises:
        ValueError: a layer whose scores are not products of queries and keys: with norms on them
            or a softcap, or with something that is not known here.
    """
    rule = score_rule(host, layer)
    if rule.softcap is not None or rule.query_norm.exists or rule.key_norm.exists:
        raise ValueError(_refusal(layer, "has norms on its queries and keys, or a softcap"))
    weights, norm = folded_attention_weights(host, layer), host.attention_norm(layer)
    positions = runs[0].places.positions
    turns = read_rotations(host, layer, max(positions) + 1)[positions]
    queries, keys, scores, patterns = [], [], [], []
    for run in runs:
        row = run.layers[layer]
        x = norm.normalize(row.before_attention)
        queries.append(_turned(x @ weights.query + weights.query_bias[:, None], turns))
        keys.append(_turned(x @ weights.key + weights.key_bias[:, None], turns))
        patterns.append(row.pattern)
        scores.append(queries[-1] @ keys[-1].mT / rule.scale)
        seen = torch.where(row.pattern > 0, scores[-1], -torch.inf)
        if not (seen.softmax(-1) - row.pattern).abs().max() < LIMIT:
            raise ValueError(_refusal(layer, "has patterns that its queries and keys do not give"))
    both = (patterns[0] > 0) & (patterns[1] > 0)
    return ScoreStep(
        query=weights.query,
        key=weights.key,
        turns=turns,
        scale=rule.scale,
        mean_queries=(queries[0] + queries[1]) / 2,
        mean_keys=(keys[0] + keys[1]) / 2,
        weights=logarithmic_mean(*patterns),
        change=torch.where(both, scores[0] - scores[1], 0.0),
    )


def logarithmic_mean(
    a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """(a - b) / (ln a - ln b), a where they are equal, 0 where one is."""
    larger, smaller = torch.maximum(a, b), torch.minimum(a, b)
    ratio = smaller / torch.where(larger > 0, larger, 1.0)
    # log1p keeps the digits of ratios near one, where both parts go to zero.
    gap = 1 - ratio
    safe = (gap > 1e-14) & (ratio > 0)
    used = torch.where(safe, gap, 0.5)
    quotient = used / -torch.log1p(-used)
    found = torch.where(safe, larger * quotient, larger)
    return torch.where(smaller > 0, found, 0.0)


def _turned(vectors: Tensor, turns: Tensor) -> Tensor:
    return torch.einsum("hpe,pef->hpf", vectors, turns)


def _refusal(layer: int, why: str) -> str:
    return f"layer {layer} {why}: leave `expand_patterns` out, and patterns' changes are nodes"
