"""A circuit's layout as an SVG element inside a page."""

from tl_bilinear.circuits.circuit import Circuit
from tl_bilinear.views.circuit_layout import Layout
from tl_bilinear.views.circuit_names import KINDS, spoken
from tl_bilinear.views.circuit_routes import Box, Point
from tl_bilinear.views.figure import NEGATIVE, NEUTRAL, POSITIVE
from tl_bilinear.views.text import escape, visible

BAND = "#f4f5f7"
FILLS = {"token": "#ececec", "logit": "#e3eef6"}


def circuit_svg(circuit: Circuit, layout: Layout) -> str:
    """Bands, lines and boxes; `data-node`, `data-edge` and `data-rest` say what each one is.

    Edges are numbered by falling |share|, remainders as in the layout.
    """
    place = {node.id: i for i, node in enumerate(circuit.nodes)}
    number = {id(edge): i for i, edge in enumerate(circuit.edges_by_size)}
    sizes, high = layout.sizes, layout.height
    parts = [
        f'<svg viewBox="0 0 {layout.width:.2f} {high:.2f}" role="group" '
        f'aria-label="{escape(visible(circuit.target_label))}">'
    ]
    for band in layout.bands:
        if band.shaded:
            parts.append(
                f'<rect x="0" y="{high - band.high:.2f}" width="{layout.width:.2f}" '
                f'height="{band.high - band.low:.2f}" fill="{BAND}"/>'
            )
        middle = high - (band.high + band.low) / 2
        parts.append(_text((6, middle), band.label, sizes.small, NEUTRAL, "start"))
    for wire in layout.wires:
        path = _path([(x, high - y) for x, y in wire.points])
        mark = f'data-edge="{number[id(wire.edge)]}"'
        parts.append(
            f'<path class="wire" {mark} d="{path}" stroke="{_color(wire.edge.share)}" '
            f'stroke-width="{wire.width:.2f}"/>'
            f'<path class="hit" {mark} d="{path}" stroke-width="{max(wire.width, 7):.2f}"/>'
        )
    for i, stub in enumerate(layout.stubs):
        line = f"M{stub.x:.2f} {high - stub.y:.2f}v{stub.length:.2f}"
        parts.append(
            f'<path class="stub" d="{line}" stroke-width="{max(stub.width, 1):.2f}" '
            f'stroke-dasharray="3 2"/>'
            f'<path class="hit" data-rest="{i}" d="{line}" '
            f'stroke-width="{max(stub.width, 9):.2f}"/>'
        )
    order = sorted(layout.boxes.values(), key=lambda box: (box.y, box.x))
    parts += [_node(box, place[box.node.id], layout) for box in order]
    turn = "" if layout.upright else ' transform="rotate(-90 {0:.2f} {1:.2f})"'
    for (x, y), text in layout.plain_tokens:
        parts.append(_text((x, high - y), text, sizes.font, NEUTRAL, turn=turn))
    for x, y in layout.gaps:
        parts.append(_text((x, high - y), "…", sizes.font, NEUTRAL))
    return "".join([*parts, "</svg>"])


def _node(box: Box, number: int, layout: Layout) -> str:
    node, sizes, y = box.node, layout.sizes, layout.height - box.y
    round_ = node.kind in ("head", "join")
    radius = box.height / 2 if round_ else 0 if node.kind in ("token", "bias") else 4
    dashes = ' stroke-dasharray="5 3"' if node.kind == "change" else ""
    thick = 2.4 if node.kind in ("supernode", "logit") else 1.2
    shape = (
        f'<rect class="shape" x="{box.x - box.width / 2:.2f}" y="{y - box.height / 2:.2f}" '
        f'width="{box.width:.2f}" height="{box.height:.2f}" rx="{radius:.2f}" '
        f'fill="{FILLS.get(node.kind, "#fff")}" stroke="{_color(node.share)}" '
        f'stroke-width="{thick}"{dashes}/>'
    )
    if len(box.lines) == 1:
        turn = "" if box.upright else ' transform="rotate(-90 {0:.2f} {1:.2f})"'
        size = sizes.small if node.kind == "head" else sizes.font
        text = _text((box.x, y), box.lines[0], size, "#111", turn=turn)
    else:
        text = _text((box.x, y - 0.58 * sizes.small), box.lines[0], sizes.font, "#111")
        text += _text((box.x, y + 0.62 * sizes.font), box.lines[1], sizes.small, _dark(node.share))
    return (
        f'<g class="node {escape(KINDS[node.kind].replace(" ", "-"))}" data-node="{number}" '
        f'tabindex="0" role="button" aria-pressed="false" aria-label="{escape(spoken(node))}">'
        f"{shape}{text}</g>"
    )


def _text(
    point: Point, text: str, size: float, color: str, anchor: str = "middle", turn: str = ""
) -> str:
    x, y = point
    # Baselines by hand: `dominant-baseline` differs from browser to browser.
    return (
        f'<text x="{x:.2f}" y="{y + 0.36 * size:.2f}" font-size="{size:g}" fill="{color}" '
        f'text-anchor="{anchor}"{turn.format(x, y)}>{escape(text)}</text>'
    )


def _path(points: list[Point]) -> str:
    first, *rest = (f"{x:.2f} {y:.2f}" for x, y in points)
    return f"M{first}C{' '.join(rest)}"


def _color(share: float) -> str:
    return POSITIVE if share >= 0 else NEGATIVE


def _dark(share: float) -> str:
    """For small letters: the orange, darker, has enough contrast on white."""
    return POSITIVE if share >= 0 else "#b84f00"
