"""A circuit as a figure for a paper."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_bilinear.circuits.circuit import Circuit
from tl_bilinear.views.circuit_layout import Layout, lay_out
from tl_bilinear.views.circuit_routes import Box
from tl_bilinear.views.circuit_sizes import Sizes
from tl_bilinear.views.circuit_wires import Stub, Wire
from tl_bilinear.views.figure import NEGATIVE, NEUTRAL, POSITIVE, style
from tl_bilinear.views.fonts import drawable, families, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 72.0
BAND = "#f4f5f7"
FAINT = "#a8a8a8"
TOKEN = "#ececec"
TARGET = "#e3eef6"


def circuit_figure(
    circuit: Circuit, *, width: float = 5.5, lines: float = 2.0, caption: bool = True
) -> "Figure":
    """The circuit with its tokens along the bottom and its layers upward.

    Lines are flows, as wide as their |share|; blue adds to the target and orange takes from it.
    Heads are arcs from column to column. Dashed grey under a node is what was not followed.
    Letters are 6.5 and 5.5 points at any width: 5.5 inches is a page's column, 3.25 one of two.

    Args:
        width: in inches; exceeded where the positions that occur do not fit, 0.16 inches each.
        lines: how many flows are drawn for each node, on average: the largest, and each node's
            largest in and out. The caption says how many are left out.
        caption: write under it how much was kept and what was frozen.

    Raises:
        ValueError: a width below 2 inches.
    """
    if width < 2:
        raise ValueError(f"a circuit is at least 2 inches wide, got `width`={width}")
    with style():
        from matplotlib.figure import Figure

        sizes = Sizes(width * POINTS)
        layout = lay_out(circuit, sizes, text_width, per_node=lines, caption=caption)
        figure = Figure(figsize=(layout.width / POINTS, layout.height / POINTS), dpi=200)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, layout.width)
        axes.set_ylim(0, layout.height)
        axes.set_axis_off()
        _draw(axes, layout)
    return figure


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write a figure as .svg, .png or .pdf, the same bytes every time, whole or not at all.

    Raises:
        ValueError: another suffix.
    """
    import io

    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    if kind not in dates:
        raise ValueError(f"{path.name}: a figure is written as .svg, .png or .pdf")
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format=kind, metadata=dates[kind])
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(buffer.getvalue())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _draw(axes: "Axes", layout: Layout) -> None:
    from matplotlib.patches import Rectangle

    sizes = layout.sizes
    for band in layout.bands:
        size = (layout.width, band.high - band.low)
        if band.shaded:
            axes.add_patch(Rectangle((0, band.low), *size, color=BAND, linewidth=0, zorder=0))
        _text(axes, 2, (band.low + band.high) / 2, band.label, sizes.small, NEUTRAL, ha="left")
    for wire in layout.wires:
        _wire(axes, wire)
    for stub in layout.stubs:
        _stub(axes, stub)
    for box in layout.boxes.values():
        _box(axes, box, layout)
    for (x, y), text in layout.plain_tokens:
        angle = 0 if layout.upright else 90
        _text(axes, x, y, text, sizes.font, NEUTRAL, rotation=angle)
    for x, y in layout.gaps:
        _text(axes, x, y, "…", sizes.font, NEUTRAL)
    for (x, y), text in layout.caption:
        _text(axes, x, y, text, sizes.small, "#444444", ha="left")


def _wire(axes: "Axes", wire: Wire) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    codes = [Curve.MOVETO] + [Curve.CURVE4] * (len(wire.points) - 1)
    axes.add_patch(
        PathPatch(
            Curve(list(wire.points), codes),
            facecolor="none",
            edgecolor=_color(wire.edge.share),
            linewidth=wire.width,
            alpha=0.75,
            capstyle="butt",
            zorder=2,
        )
    )


def _stub(axes: "Axes", stub: Stub) -> None:
    axes.plot(
        [stub.x, stub.x],
        [stub.y - stub.length, stub.y],
        color=FAINT,
        linewidth=stub.width,
        linestyle=(0, (1.6 / max(stub.width, 0.8), 1.0 / max(stub.width, 0.8))),
        zorder=1.5,
    )


def _box(axes: "Axes", box: Box, layout: Layout) -> None:
    from matplotlib.patches import FancyBboxPatch

    sizes, node = layout.sizes, box.node
    corner = (box.x - box.width / 2, box.y - box.height / 2)
    radius = box.height / 2 if node.kind in ("head", "join") else min(2.0, box.height / 4)
    if node.kind in ("token", "bias"):
        radius = 0.01
    axes.add_patch(
        FancyBboxPatch(
            corner,
            box.width,
            box.height,
            boxstyle=f"round,pad=0,rounding_size={radius}",
            facecolor={"token": TOKEN, "logit": TARGET}.get(node.kind, "white"),
            edgecolor=_color(node.share),
            linewidth=1.4 if node.kind in ("supernode", "logit") else 0.7,
            linestyle="--" if node.kind == "change" else "-",
            zorder=4,
        )
    )
    angle = 0 if box.upright else 90
    if len(box.lines) == 1:
        size = sizes.small if node.kind == "head" else sizes.font
        _text(axes, box.x, box.y, box.lines[0], size, "black", rotation=angle)
        return
    name, share = box.lines
    bold: dict[str, Any] = {"fontweight": "bold"} if node.kind == "logit" else {}
    _text(axes, box.x, box.y + 0.55 * sizes.small, name, sizes.font, "black", **bold)
    _text(axes, box.x, box.y - 0.6 * sizes.font, share, sizes.small, _color(node.share))


def _text(
    axes: "Axes", x: float, y: float, text: str, size: float, color: str, **options: Any
) -> None:
    options = {"ha": "center", "va": "center_baseline", **options}
    if options.get("rotation"):
        options["va"] = "center"
    axes.text(
        x,
        y,
        drawable(text),
        fontsize=size,
        color=color,
        zorder=5,
        fontfamily=list(families()),
        **options,
    )


def _color(share: float) -> str:
    return POSITIVE if share >= 0 else NEGATIVE
