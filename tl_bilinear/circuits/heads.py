"""A step back through attention: one node per head and pair of positions that matters.

With the pattern A given, head h at q adds A[h, q, p] W_OV x_p from each p: an edge whose share is
linear in x_p. Edges below the threshold go to one remainder per layer and query position; biases
of values and output are a bias node. In a contrast a pattern's change is a node of its own.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.circuits.readers import Ledger, Readers, reaches
from tl_bilinear.circuits.sources import BELOW, add_bias, add_drift
from tl_bilinear.circuits.steps import LayerStep

Groups = Callable[[int], list[list[int]]]


def step_attention(
    layer: int,
    step: LayerStep,
    threshold: float,
    ledger: Ledger,
    readers: Readers,
    groups: Groups,
) -> None:
    """Head edges, remainders, biases and pattern changes of one layer."""
    below: list[tuple[int, str, Tensor]] = []
    for place in readers.active:
        names, directions = readers.names[place], readers.directions[place]
        back = step.behind_attention.back(directions, place)
        heads = torch.einsum("hed,rd->rhe", step.heads.out, back)
        if step.attention_bias is not None:
            values = step.pattern[:, place].sum(-1)[:, None] * step.heads.value_bias
            bias = (heads * values).sum((1, 2)) + back @ step.heads.out_bias
            add_bias(ledger, layer, "attention", names, bias + directions @ step.attention_bias)
        add_drift(ledger, layer, "attention_post", step.behind_attention, place, names, directions)
        if step.pattern_change is not None:
            below += _changes(layer, step, place, heads, names, threshold, ledger)
        for group in groups(len(names)):
            part = [names[i] for i in group]
            suffix = f".{part[0]}" if len(groups(2)) == 2 else ""
            below += _edges(layer, step, place, heads[group], part, suffix, threshold, ledger)
    for source, id, direction in below:
        add_drift(ledger, layer, "attention", step.attention_norm, source, [id], direction[None])
        readers.add(source, [id], step.attention_norm.back(direction, source)[None])


def _edges(
    layer: int,
    step: LayerStep,
    place: int,
    heads: Float[Tensor, "reader head d_head"],
    names: Sequence[str],
    suffix: str,
    threshold: float,
    ledger: Ledger,
) -> list[tuple[int, str, Tensor]]:
    """The edges of heads into one place that are nodes: (source, id, direction there)."""
    pattern = step.pattern[:, place]
    worth = torch.einsum("rhe,hpe,hp->rhp", heads, step.values, pattern)
    total = worth.sum(0)
    kept = reaches(total, threshold).nonzero().tolist()
    rest = worth.sum((1, 2))
    found = []
    for head, source in kept:
        id = f"L{layer}.{place}.h{head}.{source}{suffix}"
        ledger.node(
            id,
            "head",
            f"L{layer}.h{head}",
            2 * layer,
            layer=layer,
            position=place,
            source_position=source,
            index=head,
            details={"pattern": float(pattern[head, source])},
        )
        ledger.flow(id, names, worth[:, head, source])
        rest = rest - worth[:, head, source]
        direction = step.heads.value[head] @ heads[:, head].sum(0) * pattern[head, source]
        found.append((source, id, direction))
    id = f"L{layer}.{place}.attention-rest"
    label = f"other heads' edges, layer {layer}"
    ledger.node(id, "remainder", label, 2 * layer - 0.5, layer=layer, position=place)
    ledger.flow(id, names, rest)
    return found


def _changes(
    layer: int,
    step: LayerStep,
    place: int,
    heads: Float[Tensor, "reader head d_head"],
    names: Sequence[str],
    threshold: float,
    ledger: Ledger,
) -> list[tuple[int, str, Tensor]]:
    """What each head's change of pattern is worth, its values at their mean.

    Those that are expanded read queries and keys: (place, id, direction there).
    """
    assert step.pattern_change is not None
    change, below = step.pattern_change[:, place], []
    worth = torch.einsum("rhe,hpe,hp->rh", heads, step.mean_values, change)
    total = reaches(worth.sum(0), threshold).tolist()
    for head in range(worth.shape[1]):
        expanded = step.scores is not None and total[head]
        id = f"pattern.L{layer}.h{head}.{place}"
        ledger.node(
            id,
            "change",
            f"pattern of L{layer}.h{head}",
            2 * layer if expanded else BELOW,
            layer=layer,
            position=place,
            index=head,
            others=(f"pattern.L{layer}.others", f"small changes of patterns, layer {layer}"),
        )
        ledger.flow(id, names, worth[:, head])
        if expanded:
            ledger.inner.add(id)
            values = step.mean_values[head] @ heads[:, head].sum(0)
            below += _expanded(
                layer, step, place, head, values, float(worth[:, head].sum()), ledger
            )
    return below


def _expanded(
    layer: int,
    step: LayerStep,
    place: int,
    head: int,
    values: Float[Tensor, " place"],
    share: float,
    ledger: Ledger,
) -> list[tuple[int, str, Tensor]]:
    """A pattern's change read on through its scores; what they do not give is a change beside."""
    assert step.scores is not None
    id = f"pattern.L{layer}.h{head}.{place}"
    by_scores, query, keys = step.scores.back(head, place, values)
    ledger.node(
        f"{id}.rounding",
        "change",
        f"pattern of L{layer}.h{head}, not by its scores",
        BELOW,
        layer=layer,
        position=place,
        index=head,
        others=(f"pattern.L{layer}.others", f"small changes of patterns, layer {layer}"),
    )
    ledger.flow(f"{id}.rounding", [id], query.new_tensor([share - by_scores]))
    return [(place, id, query)] + [
        (source, id, key) for source, key in enumerate(keys) if key.any()
    ]
