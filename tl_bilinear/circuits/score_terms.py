"""Attention scores of a one-layer model from its weights: W_E^T W_Q R W_K^T W_E and the others.

A head's score is a sum over a source of the query (embedding, position, bias) and one of the key.
Where positions rotate queries and keys, each term is a function of the relative distance
query - key: R = R_q R_k^T, the rotation by that many positions, and the embeddings' term carries
all that the model knows of positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.circuits.path_term import TokenMatrix
from tl_bilinear.circuits.virtual_source import VirtualSource, base_gram
from tl_bilinear.hosts import AbstractHost
from tl_bilinear.hosts.attention import (
    folded_attention_weights,
    head_gain,
    n_key_value_heads,
    score_rule,
)
from tl_bilinear.hosts.rotation import is_rotary, read_rotations
from tl_bilinear.hosts.sources import position_table

BIAS = "1"


@dataclass(frozen=True, eq=False)
class ScoreTerm:
    """`score[i, j] = query row i . matrix . key row j`, before the softmax and any softcap."""

    name: str
    """Such as "QK0(W_E, W_E)"; 1 is b_Q or b_K."""
    head: int
    query: str
    key: str
    order: int
    """How many of query and key are tokens."""
    distance: int | None
    """query - key, in positions, of a rotary model; None where it makes no difference."""
    denominators: Mapping[str, int]
    """On a prompt: the attention's norm at the query and at the key, norms on queries and keys."""
    softcap: float | None
    """c where the model goes on with c tanh(score / c)."""
    norm: float
    """Frobenius norm over queries and keys, every denominator one."""
    size: float
    """Root mean square over queries and keys, all equally likely."""
    families: tuple[VirtualSource, VirtualSource]
    """Of the query and of the key; of a bias it has one row."""
    matrix: Float[Tensor, "d_query d_key"]
    """W_Q R W_K^T / scale, gains folded in."""

    def tensor(self) -> TokenMatrix:
        """The term as a factored matrix [query, key]. Memory O((n_query + n_key) d_model)."""
        query, key = self.families
        return TokenMatrix(query.inner_rows() @ self.matrix, key.inner_rows())


def score_terms(host: AbstractHost, distance: int) -> tuple[ScoreTerm, ...]:
    """Every head's terms at one relative distance; a bias that is zero has none.

    O(d_vocab d_model^2) once, O(d_model^2 d_head) per term.

    Raises:
        ValueError: a distance below 0 or beyond the context.
    """
    if not 0 <= distance < host.n_ctx:
        raise ValueError(
            f"`distance` is query minus key in positions, 0 to {host.n_ctx - 1} in this model's "
            f"context, got {distance}"
        )
    turn = torch.eye(host.d_head, dtype=torch.float64, device=host.device)
    if is_rotary(host):
        every = read_rotations(host, 0, distance + 1)
        turn = every[distance] @ every[0].T
    weights, rule = folded_attention_weights(host, 0), score_rule(host, 0)
    shared = host.n_heads // n_key_value_heads(host)
    tables = [VirtualSource("W_E", "token", host.W_E.detach(), None, {})]
    positions = position_table(host)
    if positions is not None:
        tables.append(VirtualSource("W_pos", "position", positions.detach(), None, {}))
    grams = [base_gram(table.base) for table in tables]
    found = []
    for head in range(host.n_heads):
        q_gain = head_gain(rule.query_norm, head, 1, host.d_head).to(turn)
        k_gain = head_gain(rule.key_norm, head, shared, host.d_head).to(turn)
        sides = []
        for weight, bias, gain in (
            (weights.query[head], weights.query_bias[head], q_gain),
            (weights.key[head], weights.key_bias[head], k_gain),
        ):
            one = VirtualSource(BIAS, None, (bias * gain)[None], None, {})
            side = [(t, weight * gain, gram) for t, gram in zip(tables, grams, strict=True)]
            if bias.count_nonzero():
                eye = torch.eye(host.d_head).to(turn)
                side.append((one, eye, one.base.T @ one.base))
            sides.append(side)
        found += [
            _term(host, head, query, key, turn / rule.scale, rule.softcap, distance)
            for query in sides[0]
            for key in sides[1]
        ]
    return tuple(found)


Side = tuple[VirtualSource, Tensor, Tensor]
"""A family, its map into the head, and its Gram matrix."""


def _term(
    host: AbstractHost,
    head: int,
    query: Side,
    key: Side,
    turn: Tensor,
    softcap: float | None,
    distance: int,
) -> ScoreTerm:
    (first, q_map, q_gram), (second, k_map, k_gram) = query, key
    matrix = q_map @ turn @ k_map.T
    square = ((q_map.T @ q_gram @ q_map) @ turn * (turn @ (k_map.T @ k_gram @ k_map))).sum()
    norm = max(0.0, float(square)) ** 0.5
    powers = {}
    times = (first.argument is not None) + (second.argument is not None)
    if host.attention_norm(0).exists and times:
        powers["attention"] = times
    rule = score_rule(host, 0)
    powers |= {
        f"{n} norm": 1
        for n, of in (("query", rule.query_norm), ("key", rule.key_norm))
        if of.exists
    }
    return ScoreTerm(
        name=f"QK{head}({first.name}, {second.name})",
        head=head,
        query=first.name,
        key=second.name,
        order=sum(source.argument == "token" for source in (first, second)),
        distance=distance if is_rotary(host) else None,
        denominators=powers,
        softcap=softcap,
        norm=norm,
        size=norm / (first.n * second.n) ** 0.5,
        families=(first, second),
        matrix=matrix,
    )
