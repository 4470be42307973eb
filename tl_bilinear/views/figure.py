"""Matplotlib figures: one style, and inline SVG whose ids do not clash in one page.

Figures are made without pyplot: nothing global is touched and nothing has to be closed.
Save one with `figure.savefig("name.pdf")` (or .png, .svg).
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tl_bilinear.views.extra import require_views
from tl_bilinear.views.text import escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Blue and orange of Okabe and Ito's palette: told apart with any colour vision and in grey.
POSITIVE = "#0072b2"
NEGATIVE = "#d55e00"
NEUTRAL = "#666666"

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "svg.fonttype": "path",
    "svg.hashsalt": "tl_bilinear",  # else ids, and so files, differ from run to run
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a dollar sign is a dollar sign
}


@contextmanager
def style() -> Iterator[None]:
    """Our style inside the block, the user's again after it."""
    require_views()
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure in inches. 6.4 is the width of a page's column."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def figure_svg(figure: "Figure", alt: str, prefix: str) -> str:
    """The figure as an inline SVG element that scales with the page.

    Args:
        alt: what the picture shows, for those who cannot see it.
        prefix: different for every figure of one page; put before all ids.
    """
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = svg.replace('href="#', f'href="#{prefix}-').replace("url(#", f"url(#{prefix}-")
    width = re.search(r'width="([\d.]+)pt"', svg)
    size = f"width:100%;max-width:{float(width[1]) * 4 / 3:.0f}px;height:auto" if width else ""
    head = f'<svg role="img" aria-label="{escape(alt)}" style="{size}"'
    return svg.replace("<svg", head, 1)
