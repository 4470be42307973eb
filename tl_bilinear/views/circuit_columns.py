"""The grid of a circuit's picture: a column per position, a level per layer's half."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tl_bilinear.circuits.circuit import Circuit, Edge, Node
from tl_bilinear.views.circuit_names import Measure, shown_token
from tl_bilinear.views.circuit_sizes import Sizes

CHANNEL = 2.5
"""Gaps at the right edge, for lines that go around the last column."""
CROWDED = 3
"""Boxes of one row for which a column makes room; more of them stand in further rows."""


@dataclass(frozen=True)
class Columns:
    """Where the columns of the positions that occur stand."""

    centres: dict[int, float]
    widths: dict[int, float]
    width: float
    """Of the picture."""
    upright: bool
    """Whether tokens are; they read upward where columns are narrow."""
    gaps: tuple[float, ...]
    """Between columns whose positions are no neighbours."""


def levels_of(
    nodes: Sequence[Node],
    inputs: Mapping[str, Sequence[Edge]],
    outputs: Mapping[str, Sequence[Edge]],
    n_layers: int,
) -> dict[str, float]:
    """Tokens 0, heads of layer l 2l + 1, its MLP 2l + 2, targets on top.

    Constants stand below everything that they flow into, and what has no layer above its inputs;
    no line goes down.
    """
    levels: dict[str, float] = {}
    constant = {n.id for n in nodes if n.kind != "token" and not inputs[n.id]}
    for node in nodes:
        if node.kind == "token":
            levels[node.id] = 0.0
        elif node.kind == "logit":
            levels[node.id] = 2.0 * n_layers + 1
        else:
            below = [e.source for e in inputs[node.id] if e.source not in constant]
            least = max((levels[source] for source in below if source in levels), default=0.0)
            own = _own_level(node)
            levels[node.id] = own if own > least else least + 0.25
    for node in reversed(nodes):
        if node.id in constant and node.kind != "logit":
            above = min((levels[e.target] for e in outputs[node.id]), default=math.inf)
            levels[node.id] = min(levels[node.id], above - 0.5)
    return levels


def _own_level(node: Node) -> float:
    if node.layer is None:
        return 0.0
    half = {"head": 1.0, "join": 1.5}.get(node.kind, 2.0)
    return 2 * node.layer + half


def band_name(level: float, n_layers: int) -> str:
    """What stands at a level, if that has a name of its own."""
    layer, half = divmod(level - 1, 2)
    if not 0 <= layer < n_layers:
        return ""
    return {0.0: f"L{layer:.0f} heads", 1.0: f"L{layer:.0f} MLP"}.get(half, "")


def column_centres(
    circuit: Circuit,
    nodes: Sequence[Node],
    levels: Mapping[str, float],
    sizes: Sizes,
    measure: Measure,
) -> Columns:
    """Columns of the width that their tokens and boxes ask for, within the picture's width."""
    positions = {p for n in nodes for p in (n.position, n.source_position) if p is not None}
    order = sorted(positions)
    if not order:
        return Columns({}, {}, sizes.width, True, ())
    texts = [shown_token(circuit.tokens[p]) if 0 <= p < len(circuit.tokens) else "" for p in order]
    words = [min(measure(text, sizes.font), sizes.box) + 2 * sizes.pad for text in texts]
    shares = {n.position: n.share for n in nodes if n.kind == "token"}
    words = [
        max(word, measure(f"{shares[p]:+.2f}", sizes.small) + 2 * sizes.pad)
        if p in shares
        else word
        for word, p in zip(words, order, strict=True)
    ]
    skips = sum(b - a > 1 for a, b in zip(order, order[1:], strict=False))
    room = sizes.width - sizes.margin - CHANNEL * sizes.gap - skips * sizes.font
    upright = math.fsum(words) + sizes.gap * len(words) <= room
    narrow = 1.5 * sizes.font
    least = [word + sizes.gap if upright else narrow + sizes.gap for word in words]
    wanted = _wanted(nodes, levels, sizes, order)
    wanted = [max(want, low) for want, low in zip(wanted, least, strict=True)]
    widths = _shared(least, wanted, room)
    centres, gaps, x = {}, [], sizes.margin
    for i, (position, width) in enumerate(zip(order, widths, strict=True)):
        if i and position - order[i - 1] > 1:
            gaps.append(x + sizes.font / 2)
            x += sizes.font
        centres[position] = x + width / 2
        x += width
    return Columns(
        centres,
        dict(zip(order, widths, strict=True)),
        max(sizes.width, x + CHANNEL * sizes.gap),
        upright,
        tuple(gaps),
    )


def _wanted(
    nodes: Sequence[Node], levels: Mapping[str, float], sizes: Sizes, order: Sequence[int]
) -> list[float]:
    """The width at which a column's boxes would stand side by side, up to a few of them."""
    crowd: dict[tuple[int, float], int] = defaultdict(int)
    for node in nodes:
        if node.position is not None and node.kind not in ("head", "token"):
            crowd[node.position, levels[node.id]] += 1
    most: dict[int, int] = defaultdict(int)
    for (position, _), count in crowd.items():
        most[position] = max(most[position], min(count, CROWDED))
    return [most[position] * (sizes.box + 2 * sizes.gap) for position in order]


def _shared(least: Sequence[float], wanted: Sequence[float], room: float) -> list[float]:
    """Widths between the two that fill the room; the least where it is not enough."""
    more = math.fsum(wanted) - math.fsum(least)
    left = room - math.fsum(least)
    if left <= 0:
        return list(least)
    if more <= left:
        extra = (left - more) / len(least)
        return [want + extra for want in wanted]
    return [low + (want - low) * left / more for low, want in zip(least, wanted, strict=True)]
