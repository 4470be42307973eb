"""One attention score, before the softmax, as an exact sum over pairs of sources.

A head's score of the key at k for the query at q is bilinear in the streams there:

    score = (sum_s x_s M_q / rho_q + b_q) . (sum_t y_t M_k / rho_k + b_k) / scale

with M_q = W_Q R_q and M_k = W_K R_k, the norm's gain folded in and R the rotation of each position
(the identity where positions are learned). Norms on queries and keys (Qwen3, Gemma 3, OLMo2) are
frozen like the stream's. What a softcap then does to the score is left out and named.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.circuits.pair_rows import pair_rows, table_text
from tl_bilinear.hosts import get_host
from tl_bilinear.hosts.attention import attention_input_site, attention_scale_site, pattern_site
from tl_bilinear.hosts.prompts import Text, one_prompt, require_in_context, token_names
from tl_bilinear.hosts.provenance import Provenance, provenance
from tl_bilinear.hosts.rotation import rotation_hooks
from tl_bilinear.hosts.score_map import ScoreMap, read_score_map
from tl_bilinear.hosts.sources import (
    CONSTANT,
    Source,
    source_hooks,
    source_index,
    source_values,
    stream_sources,
)


@dataclass(frozen=True, eq=False)
class ScorePairs:
    """A pre-softmax score by (query source, key source); `table` sums to `score`.

    The last row and column are the constants: b_Q and b_K with what the norm's bias adds.
    """

    layer: int
    head: int
    query: int
    """Position of the query."""
    key: int
    sources: tuple[Source, ...]
    """Of rows (at the query's position) and columns (at the key's); the constant is the last."""
    table: Float[Tensor, "query_source key_source"]
    score: Float[Tensor, ""]
    """Before any softcap: q . k / scale, of the stream that the model itself normalised."""
    scale: float
    """What q . k is divided by; it is in the table already."""
    softcap: float | None
    """c where the model goes on with c tanh(score / c)."""
    pattern: float
    """What the softmax makes of it: the model's own attention from query to key."""
    tokens: tuple[str, str]
    """At the query and at the key."""
    provenance: Provenance

    @property
    def discrepancy(self) -> Float[Tensor, ""]:
        """The score minus the sum of all pairs: rounding error, or something is wrong."""
        return self.score - self.table.sum()

    @property
    def capped(self) -> Float[Tensor, ""]:
        """The score behind the softcap, which is what the softmax reads."""
        if self.softcap is None:
            return self.score
        return self.softcap * (self.score / self.softcap).tanh()

    def index(self, source: Source | str) -> int:
        """The row and column of a source, given itself or its name.

        Raises:
            ValueError: a source that the table does not have.
        """
        return source_index(self.sources, source)

    def pair(self, query: Source | str, key: Source | str) -> Float[Tensor, ""]:
        """What a source of the query and one of the key add to the score together."""
        return self.table[self.index(query), self.index(key)]

    def top(self, k: int) -> tuple[tuple[Source, Source, float], ...]:
        """The k pairs (query source, key source) of largest |share|, with the share."""
        rows = pair_rows(self.table, k, symmetric=False)
        return tuple((self.sources[i], self.sources[j], value) for i, j, value in rows)

    def __str__(self) -> str:
        title = (
            f"L{self.layer}H{self.head} from {self.tokens[0]!r} ({self.query}) to "
            f"{self.tokens[1]!r} ({self.key}): score {float(self.score):+.3f}, attention "
            f"{self.pattern:.3f}; query source x key source"
        )
        return table_text(title, self.top(10), float(self.score))


def score_pairs(
    model: Any, text: Text, layer: int, head: int, query: int = -1, key: int = -1
) -> ScorePairs:
    """A head's pre-softmax score at one query and one key by pairs of sources, in float64.

    Args:
        model: a HookedTransformer, a TransformerBridge or a host, whatever its MLPs are.
        text: one text, or token ids [pos] or [1, pos].
        query: the position that attends; negative counts from the end.
        key: the position that is attended to, not later than the query.

    Cost: one forward pass; O(S * d_model * d_head).

    Raises:
        ValueError: several prompts, or one that is empty or longer than the context; a layer,
            head or position out of range; a key that the query does not see; a model whose
            pattern is not the softmax of the scores that its weights give.
    """
    host = get_host(model)
    sources = stream_sources(host, layer, "pre")
    if not 0 <= head < host.n_heads:
        raise ValueError(
            f"`head` {head} is out of range: this model has {host.n_heads} heads per layer "
            f"(0-{host.n_heads - 1})"
        )
    tokens = one_prompt(host, text)
    require_in_context(host, len(tokens))
    query, key = _places(len(tokens), query, key)
    scale = attention_scale_site(host, layer)
    hooks = [attention_input_site(host, layer), pattern_site(layer), *([scale] if scale else [])]
    hooks += [*source_hooks(host, layer, "pre"), *rotation_hooks(host, layer)]
    _, values = host.read(tokens[None], list(dict.fromkeys(hooks)))
    rule = read_score_map(host, layer, head, query, values)
    pattern = float(values[pattern_site(layer)][0, head, query, key])
    if key not in rule.seen:
        raise ValueError(
            f"layer {layer} does not let position {query} see position {key}: its window is shorter"
        )
    at = torch.tensor([query, key])
    flat = {name: values[name][:, at].flatten(2) for name in source_hooks(host, layer, "pre")}
    streams = source_values(host, sources, flat)[0]
    if scale is not None:
        streams = streams / values[scale][0, at].double()[..., None]
    first, second = token_names(host, tokens[at])
    table = _table(rule, streams, key)
    x = values[attention_input_site(host, layer)][0, at].double()
    q, k = x[0] @ rule.query + rule.query_bias, x[1] @ rule.keys[key] + rule.key_biases[key]
    return ScorePairs(
        layer=layer,
        head=head,
        query=query,
        key=key,
        sources=(*sources, CONSTANT),
        table=table,
        score=q @ k / rule.scale,
        scale=rule.scale,
        softcap=rule.softcap,
        pattern=pattern,
        tokens=(first, second),
        provenance=provenance(host, rule.frozen, "none"),
    )


def _table(rule: ScoreMap, streams: Tensor, key: int) -> Tensor:
    """[query source, key source], the constants last."""
    queries = torch.cat([streams[0] @ rule.query, rule.query_bias[None]])
    keys = torch.cat([streams[1] @ rule.keys[key], rule.key_biases[key][None]])
    return queries @ keys.T / rule.scale


def _places(length: int, query: int, key: int) -> tuple[int, int]:
    for name, place in (("query", query), ("key", key)):
        if not -length <= place < length:
            raise ValueError(
                f"`{name}` {place} is out of range: the prompt has {length} tokens "
                f"(0-{length - 1}, or -{length} to -1 from the end)"
            )
    query, key = query % length, key % length
    if key > query:
        raise ValueError(
            f"the query at {query} does not see the key at {key}, which comes later: exchange them?"
        )
    return query, key
