"""The lines of a circuit's picture, between boxes that stand already."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from tl_bilinear.circuits.circuit import Circuit, Edge, Node
from tl_bilinear.views.circuit_routes import Box, Grid, Point, route
from tl_bilinear.views.circuit_sizes import Sizes

LEAST_EDGES = 24
THINNEST = 0.12
"""Of the widest line: thinner ones could not be seen."""


@dataclass(frozen=True)
class Wire:
    """A flow as cubic curves, one behind the other: 3 n + 1 points."""

    edge: Edge
    points: tuple[Point, ...]
    width: float


@dataclass(frozen=True)
class Stub:
    """What enters a box from remainders: a short dashed line under it."""

    target: Node
    sources: tuple[Node, ...]
    share: float
    x: float
    y: float
    """Its upper end."""
    length: float
    width: float


def drawn_edges(circuit: Circuit, names: Set[str], per_node: float) -> list[Edge]:
    """The largest edges between these nodes, and each node's largest in and out in any case.

    Args:
        per_node: how many edges are drawn for each node, on average; all where there are fewer.
    """
    edges = [e for e in circuit.edges_by_size if e.source in names and e.target in names]
    limit = max(LEAST_EDGES, per_node * len(names))
    entered: set[str] = set()
    left: set[str] = set()
    found = []
    for number, edge in enumerate(edges):
        if number < limit or edge.target not in entered or edge.source not in left:
            found.append(edge)
        entered.add(edge.target)
        left.add(edge.source)
    return found


def wires_of(
    edges: Sequence[Edge], circuit: Circuit, boxes: Mapping[str, Box], sizes: Sizes, width: float
) -> tuple[Wire, ...]:
    """A line per edge, around the boxes between; the largest last, on top."""
    leave = _ports(edges, boxes, leaving=True)
    enter = _ports(edges, boxes, leaving=False)
    grid = Grid(list(boxes.values()), sizes, width)
    wires = []
    for number in sorted(range(len(edges)), key=lambda n: -abs(edges[n].share)):
        edge = edges[number]
        start, end = boxes[edge.source], boxes[edge.target]
        thick = _width(edge.share, circuit, sizes)
        a, b = (leave[number], start.top), (enter[number], end.bottom)
        wires.append(Wire(edge, tuple(route(grid, a, b, start, end, thick)), thick))
    return tuple(reversed(wires))


def stubs_of(circuit: Circuit, boxes: Mapping[str, Box], sizes: Sizes) -> tuple[Stub, ...]:
    """One under every box that remainders flow into, as wide as their |shares| together."""
    rest: dict[str, list[Edge]] = defaultdict(list)
    for edge in circuit.edges:
        if circuit.node(edge.source).kind == "remainder" and edge.target in boxes:
            rest[edge.target].append(edge)
    return tuple(
        Stub(
            target=boxes[name].node,
            sources=tuple(circuit.node(edge.source) for edge in edges),
            share=math.fsum(edge.share for edge in edges),
            x=boxes[name].x - boxes[name].width / 2 + min(sizes.pad + 1, boxes[name].width / 4),
            y=boxes[name].bottom,
            length=0.55 * sizes.wire,
            width=_width(math.fsum(abs(edge.share) for edge in edges), circuit, sizes),
        )
        for name, edges in rest.items()
    )


def _width(share: float, circuit: Circuit, sizes: Sizes) -> float:
    largest = max(abs(edge.share) for edge in circuit.edges) or 1.0
    return sizes.widest * min(1.0, max(THINNEST, abs(share) / largest))


def _ports(edges: Sequence[Edge], boxes: Mapping[str, Box], *, leaving: bool) -> dict[int, float]:
    """The x at which each line leaves or enters its box: in the order of their other ends."""
    at: dict[str, list[int]] = defaultdict(list)
    far = {}
    for number, edge in enumerate(edges):
        at[edge.source if leaving else edge.target].append(number)
        far[number] = boxes[edge.target if leaving else edge.source].x
    ports = {}
    for name, numbers in at.items():
        box = boxes[name]
        room = 0.0 if box.node.kind == "head" else 0.6 * box.width
        for i, number in enumerate(sorted(numbers, key=lambda n: (far[n], n))):
            ports[number] = box.x + room * ((i + 0.5) / len(numbers) - 0.5)
    return ports
