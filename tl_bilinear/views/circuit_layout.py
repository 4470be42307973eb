"""Where everything of a circuit's picture stands: tokens below, layers upward, heads between.

Every position that occurs is a column, and every layer a band of attention and a band of its MLP.
Boxes stand as near to their column as others allow, in further rows of their band where they must;
heads are arcs from column to column whose labels have lanes of their own. Nothing overlaps but
lines, which run behind boxes. y points up; all lengths are in the units of `Sizes`.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tl_bilinear.circuits.circuit import Circuit, Edge, Node
from tl_bilinear.views.circuit_columns import Columns, band_name, column_centres, levels_of
from tl_bilinear.views.circuit_names import Measure, caption_of, name_of, words
from tl_bilinear.views.circuit_routes import Box, Point
from tl_bilinear.views.circuit_sizes import Sizes
from tl_bilinear.views.circuit_wires import Stub, Wire, drawn_edges, stubs_of, wires_of
from tl_bilinear.views.text import signed


@dataclass(frozen=True)
class Band:
    """A layer's attention or MLP."""

    label: str
    low: float
    high: float
    shaded: bool


@dataclass(frozen=True)
class Layout:
    """A picture, ready to be drawn."""

    sizes: Sizes
    width: float
    height: float
    boxes: dict[str, Box]
    wires: tuple[Wire, ...]
    stubs: tuple[Stub, ...]
    bands: tuple[Band, ...]
    plain_tokens: tuple[tuple[Point, str], ...]
    """Of columns in which no token is a node."""
    gaps: tuple[Point, ...]
    """Where positions were left out."""
    upright: bool
    """Whether tokens are."""
    caption: tuple[tuple[Point, str], ...]
    """Lines, each from its left end."""


def lay_out(
    circuit: Circuit,
    sizes: Sizes,
    measure: Measure,
    *,
    per_node: float = math.inf,
    caption: bool = True,
) -> Layout:
    """The layout of a circuit. It widens beyond `sizes.width` only for too many columns.

    O(lines * boxes).

    Args:
        per_node: how many lines are drawn for each box, on average (`drawn_edges`).
        caption: whether room is made for one.
    """
    inputs: dict[str, list[Edge]] = defaultdict(list)
    outputs: dict[str, list[Edge]] = defaultdict(list)
    for edge in circuit.edges:
        inputs[edge.target].append(edge)
        outputs[edge.source].append(edge)
    drawn = [node for node in circuit.nodes if node.kind != "remainder"]
    levels = levels_of(drawn, inputs, outputs, circuit.n_layers)
    columns = column_centres(circuit, drawn, levels, sizes, measure)
    work = _Stack(circuit, sizes, measure, columns, inputs, outputs)
    names = {node.id for node in drawn}
    edges = drawn_edges(circuit, names, per_node)
    left_out = sum(e.source in names and e.target in names for e in circuit.edges) - len(edges)
    text = words(caption_of(circuit, left_out), columns.width - sizes.gap, sizes.small, measure)
    text = text if caption else []
    line = 1.4 * sizes.small
    work.top = foot = len(text) * line + (1.5 * sizes.gap if text else sizes.gap / 2)
    plain = work.tokens([node for node in drawn if node.kind == "token"])
    for level in sorted({levels[node.id] for node in drawn if node.kind != "token"}):
        nodes = [n for n in drawn if n.kind != "token" and levels[n.id] == level]
        work.band([node for node in nodes if node.kind == "head"], level)
        work.band([node for node in nodes if node.kind != "head"], level)
    return Layout(
        sizes=sizes,
        width=columns.width,
        height=work.top - sizes.wire + sizes.gap / 2,
        boxes=work.boxes,
        wires=wires_of(edges, circuit, work.boxes, sizes, columns.width),
        stubs=stubs_of(circuit, work.boxes, sizes),
        bands=tuple(work.bands),
        plain_tokens=plain,
        gaps=tuple((x, foot + work.token_height / 2) for x in columns.gaps),
        upright=columns.upright,
        caption=tuple(
            ((sizes.gap / 2, (len(text) - i - 0.5) * line), words) for i, words in enumerate(text)
        ),
    )


@dataclass
class _Stack:
    """Rows of boxes, one above the other."""

    circuit: Circuit
    sizes: Sizes
    measure: Measure
    columns: Columns
    inputs: dict[str, list[Edge]]
    outputs: dict[str, list[Edge]]
    boxes: dict[str, Box] = field(default_factory=dict)
    bands: list[Band] = field(default_factory=list)
    top: float = 0.0

    def tokens(self, nodes: Sequence[Node]) -> tuple[tuple[Point, str], ...]:
        """The lowest row: boxes of token nodes; the plain text of other columns is returned."""
        low, high = self.top, self.token_height
        rows = self._pack([self._token(node) for node in nodes], self.sizes.gap)
        for row in rows or [[]]:
            for box in row:
                self.boxes[box.node.id] = replace(box, y=self.top + high / 2)
            self.top += high + self.sizes.gap
        self.top += self.sizes.wire - self.sizes.gap
        named = {node.position for node in nodes}
        free = [p for p in self.columns.centres if p not in named and self._in_prompt(p)]
        return tuple(
            ((self.columns.centres[position], low + high / 2), self._token_text(position))
            for position in free
        )

    @property
    def token_height(self) -> float:
        sizes = self.sizes
        if self.columns.upright:
            return 1.2 * sizes.font + 1.2 * sizes.small + sizes.pad
        texts = [self._token_text(p) for p in self.columns.centres if self._in_prompt(p)]
        longest = max((self.measure(text, sizes.font) for text in texts), default=sizes.font)
        return longest + 2 * sizes.pad

    def band(self, nodes: Sequence[Node], level: float) -> None:
        """The next rows: heads in lanes, anything else packed."""
        if not nodes:
            return
        heads = nodes[0].kind == "head"
        rows = (
            self._lanes(nodes)
            if heads
            else self._pack(list(map(self._box, nodes)), 2 * self.sizes.gap)
        )
        low, gap = self.top, (0.5 if heads else 2) * self.sizes.gap
        for row in rows:
            high = max(box.height for box in row)
            high = max(high, self.sizes.lane - gap) if heads else high
            for box in row:
                self.boxes[box.node.id] = replace(box, y=self.top + high / 2)
            self.top += high + gap
        self.top -= gap
        name = band_name(level, self.circuit.n_layers)
        if name:
            edge = self.sizes.wire / 4
            self.bands.append(Band(name, low - edge, self.top + edge, shaded=not heads))
        self.top += self.sizes.wire

    # ---- boxes --------------------------------------------------------------------------

    def _box(self, node: Node) -> Box:
        sizes, x = self.sizes, self._wanted(node)
        inner = (2 if node.kind == "logit" else 1) * sizes.box - 2 * sizes.pad
        name = name_of(node, inner, sizes.font, self.measure)
        if node.kind == "join":
            return Box(node, x, 0.0, 1.7 * sizes.font, 1.7 * sizes.font, (name,))
        if node.kind == "head":
            wide = self.measure(name, sizes.small) + 2 * sizes.pad
            return Box(node, x, 0.0, wide, 1.5 * sizes.small, (name,))
        share = signed(node.share, 2) + (" logits" if node.kind == "logit" else "")
        bold = 1.15 if node.kind == "logit" else 1.0
        wide = max(bold * self.measure(name, sizes.font), self.measure(share, sizes.small))
        high = 1.2 * sizes.font + 1.2 * sizes.small + sizes.pad
        return Box(node, x, 0.0, wide + 2 * sizes.pad, high, (name, share))

    def _token(self, node: Node) -> Box:
        box = self._box(node)
        if self.columns.upright:
            return box
        wide = 1.5 * self.sizes.font
        return replace(
            box, width=wide, height=self.token_height, lines=box.lines[:1], upright=False
        )

    def _token_text(self, position: int) -> str:
        node = Node("", "token", self.circuit.tokens[position], 0.0)
        sizes = self.sizes
        return name_of(node, sizes.box - 2 * sizes.pad, sizes.font, self.measure)

    def _in_prompt(self, position: int) -> bool:
        return 0 <= position < len(self.circuit.tokens)

    def _wanted(self, node: Node) -> float:
        """The x at which a node would stand alone: halfway along an arc, else at its position."""
        centres = self.columns.centres
        if node.kind == "head":
            ends = [centres[p] for p in (node.source_position, node.position) if p in centres]
        elif node.position is not None:
            ends = [centres[node.position]]
        else:
            targets = [self.circuit.node(edge.target).position for edge in self.outputs[node.id]]
            ends = [centres[position] for position in targets if position in centres]
        return math.fsum(ends) / len(ends) if ends else self.columns.width / 2

    def _inside(self, box: Box, x: float) -> float:
        low = self.sizes.margin + box.width / 2
        return max(low, min(x, self.columns.width - self.sizes.gap / 2 - box.width / 2))

    def _pack(self, boxes: Sequence[Box], space: float) -> list[list[Box]]:
        """Rows of boxes, `space` apart, each near the x it wants, large shares first."""
        # Where all are of one position, nobody takes a box for another position's.
        alone = len({box.node.position for box in boxes}) == 1
        rows: list[list[Box]] = []
        for box in sorted(boxes, key=lambda box: (-abs(box.node.share), box.node.id)):
            for row in rows:
                x = self._free(row, box, space, alone)
                if x is not None:
                    row.append(replace(box, x=x))
                    break
            else:
                rows.append([replace(box, x=self._inside(box, box.x))])
        return rows

    def _free(self, row: Sequence[Box], box: Box, space: float, alone: bool) -> float | None:
        """The free x nearest to where the box wants to be; None if that is far, unless `alone`."""
        away = [(o.x, (o.width + box.width) / 2 + space) for o in row]
        home = self._inside(box, box.x)
        places = [home, *(x + side * far for x, far in away for side in (-1, 1))]
        free = [
            place
            for place in places
            if abs(self._inside(box, place) - place) < 1e-6
            and all(abs(place - x) > far - 1e-6 for x, far in away)
        ]
        best = min(free, key=lambda place: (abs(place - home), place), default=None)
        far = 0.9 * box.width + 2 * self.sizes.gap
        if box.node.position is not None:
            room = self.columns.widths.get(box.node.position, 0.0)
            far = max(far, (room - box.width) / 2)
        far = math.inf if alone else far
        return best if best is not None and abs(best - home) <= far else None

    def _lanes(self, heads: Sequence[Node]) -> list[list[Box]]:
        """Labels halfway along their arcs, short arcs in lower lanes; no arc crosses a label."""
        arcs = []
        for node in heads:
            box = self._box(node)
            box = replace(box, x=self._inside(box, box.x))
            centres = self.columns.centres
            ends = [centres[p] for p in (node.source_position, node.position) if p in centres]
            # What flows in may stand elsewhere: a bias has no position.
            ends += [self.boxes[e.source].x for e in self.inputs[node.id] if e.source in self.boxes]
            half = box.width / 2 + self.sizes.gap
            arcs.append((box, min([box.x - half, *ends]), max([box.x + half, *ends])))
        lanes: list[list[tuple[Box, float, float]]] = []
        for arc in sorted(arcs, key=lambda arc: (arc[2] - arc[1], arc[0].x, arc[0].node.id)):
            for lane in lanes:
                if all(arc[1] >= high or arc[2] <= low for _, low, high in lane):
                    lane.append(arc)
                    break
            else:
                lanes.append([arc])
        return [[box for box, _, _ in lane] for lane in lanes]
