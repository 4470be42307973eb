"""The lines of a circuit's picture, between boxes that stand already."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tl_bilinear.circuits.circuit import Circuit, Edge, Node
from tl_bilinear.views.circuit_sizes import Sizes

Point = tuple[float, float]
THINNEST = 0.12
"""Of the widest line: thinner ones could not be seen."""


@dataclass(frozen=True)
class Box:
    """A node's place: centre, size, and its lines of text, the first one its name."""

    node: Node
    x: float
    y: float
    width: float
    height: float
    lines: tuple[str, ...]
    upright: bool = True
    """Whether its text is; tokens of narrow columns read upward."""

    @property
    def top(self) -> float:
        return self.y + self.height / 2

    @property
    def bottom(self) -> float:
        return self.y - self.height / 2


@dataclass(frozen=True)
class Wire:
    """A flow as a cubic curve."""

    edge: Edge
    points: tuple[Point, Point, Point, Point]
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


def wires_of(circuit: Circuit, boxes: Mapping[str, Box], sizes: Sizes) -> tuple[Wire, ...]:
    """A line per edge between boxes, the largest last: it is drawn over the others."""
    edges = [e for e in circuit.edges if e.source in boxes and e.target in boxes]
    leave = _ports(edges, boxes, leaving=True)
    enter = _ports(edges, boxes, leaving=False)
    wires = []
    for number, edge in enumerate(edges):
        start, end = boxes[edge.source], boxes[edge.target]
        points = _curve((leave[number], start.top), (enter[number], end.bottom), start, end)
        wires.append(Wire(edge, points, _width(edge.share, circuit, sizes)))
    return tuple(sorted(wires, key=lambda wire: abs(wire.edge.share)))


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


def _curve(a: Point, b: Point, start: Box, end: Box) -> tuple[Point, Point, Point, Point]:
    """Upright at boxes; level at a head's label, which its arc passes sideways."""
    if end.node.kind == "head" and abs(a[0] - end.x) > end.width / 2:
        b = (end.x - math.copysign(end.width / 2, end.x - a[0]), end.y)
        return a, (a[0], b[1]), ((a[0] + b[0]) / 2, b[1]), b
    if start.node.kind == "head" and abs(b[0] - start.x) > start.width / 2:
        a = (start.x - math.copysign(start.width / 2, start.x - b[0]), start.y)
        return a, ((a[0] + b[0]) / 2, a[1]), (b[0], a[1]), b
    half = (b[1] - a[1]) / 2
    return a, (a[0], a[1] + half), (b[0], b[1] - half), b
