"""The way of one line through a circuit's picture: around the boxes that it does not belong to."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tl_bilinear.circuits.circuit import Node
from tl_bilinear.views.circuit_sizes import Sizes

Point = tuple[float, float]


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


@dataclass
class Row:
    """Boxes of one height, and what of its width is taken by them and by lines."""

    low: float
    high: float
    boxes: list[tuple[float, float]] = field(default_factory=list)
    lines: list[tuple[float, float]] = field(default_factory=list)


class Grid:
    """The rows of a picture, lowest first."""

    def __init__(self, boxes: Sequence[Box], sizes: Sizes, width: float):
        self.sizes, self.width = sizes, width
        by_height: dict[float, list[Box]] = defaultdict(list)
        for box in boxes:
            by_height[box.y].append(box)
        self.rows = [
            Row(
                min(box.bottom for box in row),
                max(box.top for box in row),
                [(box.x - box.width / 2, box.x + box.width / 2) for box in row],
            )
            for _, row in sorted(by_height.items())
        ]

    def between(self, low: float, high: float) -> list[Row]:
        """The rows wholly between two heights."""
        return [row for row in self.rows if row.low > low and row.high < high]

    def free(self, row: Row, x: float, thick: float) -> float:
        """The nearest x at which a line passes a row without touching what is there."""
        pad = 0.5 * self.sizes.pad
        taken = [(a - pad, b + pad) for a, b in row.boxes] + row.lines
        half = thick / 2 + 0.2 * pad
        low, high = self.sizes.margin, self.width - half
        edges = [side for a, b in taken for side in (a - half - 1e-6, b + half + 1e-6)]
        places = [
            place
            for place in (x, *edges)
            if low <= place <= high
            and all(place + half <= a or place - half >= b for a, b in taken)
        ]
        return min(places, key=lambda place: (abs(place - x), place), default=x)

    def clear(self, row: Row, a: float, b: float, thick: float) -> bool:
        """Whether a line that passes a row between two x touches no box."""
        half = thick / 2 + 0.4 * self.sizes.pad
        low, high = min(a, b) - half, max(a, b) + half
        return all(high <= left or low >= right for left, right in row.boxes)

    def blocked(self, curve: Sequence[Point], own: Box, thick: float) -> bool:
        """Whether a cubic curve touches a box that is not its own."""
        half = thick / 2 + 0.4 * self.sizes.pad
        path = [_on(curve, step / 16) for step in range(17)]
        low, high = min(y for _, y in path), max(y for _, y in path)
        for row in self.rows:
            if row.high < low or row.low > high:
                continue
            others = [
                (left, right)
                for left, right in row.boxes
                if not (left <= own.x <= right and row.low <= own.y <= row.high)
            ]
            for x, y in path[1:]:
                if row.low <= y <= row.high and any(
                    left - half < x < right + half for left, right in others
                ):
                    return True
        return False


def _on(curve: Sequence[Point], part: float) -> Point:
    """A point of a cubic curve."""
    rest = 1 - part
    weights = (rest**3, 3 * part * rest**2, 3 * part**2 * rest, part**3)
    x = sum(weight * point[0] for weight, point in zip(weights, curve, strict=True))
    return x, sum(weight * point[1] for weight, point in zip(weights, curve, strict=True))


def route(grid: Grid, a: Point, b: Point, start: Box, end: Box, thick: float) -> list[Point]:
    """Cubic curves from a box's upper side to the next one's lower side.

    Upright at boxes; level at a head's label, which its arc passes sideways.
    """
    if end.node.kind == "head" and abs(a[0] - end.x) > end.width / 2:
        points = _upright([a, *_passages(grid, a, (a[0], end.bottom), thick)])
        return points + _arc(grid, points[-1], end, thick)[1:]
    if start.node.kind == "head" and abs(b[0] - start.x) > start.width / 2:
        points = _upright([*_passages(grid, (b[0], start.top), b, thick), b])
        return _arc(grid, points[0], start, thick)[:0:-1] + points
    return _upright([a, *_passages(grid, a, b, thick), b])


def _arc(grid: Grid, point: Point, label: Box, thick: float) -> list[Point]:
    """From a point, where it is upright, to the side of a head's label, where it is level.

    It bends as early as the boxes on its way allow.
    """
    x, y = point
    side = label.x - math.copysign(label.width / 2, label.x - x)
    rows = grid.between(min(y, label.bottom), max(y, label.top))
    margin = 0.5 * grid.sizes.pad
    if y < label.y:
        bends = [y, *(row.high + margin for row in rows if row.high < label.y)]
    else:
        bends = [y, *(row.low - margin for row in reversed(rows) if row.low > label.y)]
    curve: list[Point] = []
    for bend in bends:
        curve = [
            (x, bend),
            (x, (bend + 2 * label.y) / 3),
            ((x + side) / 2, label.y),
            (side, label.y),
        ]
        if not grid.blocked(curve, label, thick):
            break
    straight = curve[0][1]
    return curve if straight == y else [*_upright([point, (x, straight)]), *curve[1:]]


def _passages(grid: Grid, a: Point, b: Point, thick: float) -> list[Point]:
    """Where a line enters and leaves rows on its way; none if the plain curve is clear.

    It goes first around the row that turns it aside most, then the same below and above that.
    """
    rows = grid.between(a[1], b[1])
    turns = []
    for row in rows:
        x = _at(a, b, (row.low + row.high) / 2)
        if not grid.clear(row, _at(a, b, row.low), _at(a, b, row.high), thick):
            around = grid.free(row, x, thick)
            turns.append((abs(around - x), around, row))
    if not turns:
        for row in rows:
            row.lines.append(_taken(_at(a, b, (row.low + row.high) / 2), thick))
        return []
    _, x, row = max(turns, key=lambda turn: turn[0])
    row.lines.append(_taken(x, thick))
    margin = 0.5 * grid.sizes.pad
    low, high = (x, row.low - margin), (x, row.high + margin)
    return [*_passages(grid, a, low, thick), low, high, *_passages(grid, high, b, thick)]


def _taken(x: float, thick: float) -> tuple[float, float]:
    return x - thick / 2, x + thick / 2


def _at(a: Point, b: Point, y: float) -> float:
    """The x of the curve from a to b, upright at both, at a height (as a smooth step)."""
    part = (y - a[1]) / (b[1] - a[1])
    return a[0] + (b[0] - a[0]) * part * part * (3 - 2 * part)


def _upright(points: Sequence[Point]) -> list[Point]:
    """Cubic curves through points, upright at each."""
    found = [points[0]]
    for (x, y), (to_x, to_y) in zip(points, points[1:], strict=False):
        half = (to_y - y) / 2
        found += [(x, y + half), (to_x, to_y - half), (to_x, to_y)]
    return found
