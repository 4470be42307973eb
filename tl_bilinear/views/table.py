"""An HTML table inside its own scrolling box."""

from collections.abc import Sequence
from dataclasses import dataclass

from tl_bilinear.views.text import escape


@dataclass(frozen=True)
class Markup:
    """A piece of HTML that is already safe; every other cell is escaped."""

    html: str
    style: str = ""


Cell = str | Markup


def table(
    header: Sequence[Cell],
    rows: Sequence[Sequence[Cell]],
    *,
    caption: str = "",
    total_rows: int = 0,
    text_columns: int = 1,
    dense: bool = False,
) -> str:
    """Rows under a header.

    Args:
        caption: plain text above the table: what is listed and in which unit.
        total_rows: how many of the last rows are sums of those above.
        dense: narrow columns, for many of them.
        text_columns: how many columns from the left hold text; the others are numbers.
    """
    kind = ' class="dense"' if dense else ""
    # Not <caption>: it would scroll sideways with a wide table and be cut on a narrow screen.
    lines = ["<figure>"]
    if caption:
        lines.append(f"<figcaption>{escape(caption)}</figcaption>")
    lines.append(f'<div class="scroll"><table{kind}>')
    if header:
        cells = "".join(_cell("th", cell, i < text_columns) for i, cell in enumerate(header))
        lines.append(f"<thead><tr>{cells}</tr></thead>")
    lines.append("<tbody>")
    for number, row in enumerate(rows):
        total = ' class="total"' if number >= len(rows) - total_rows else ""
        cells = "".join(_cell("td", cell, i < text_columns) for i, cell in enumerate(row))
        lines.append(f"<tr{total}>{cells}</tr>")
    lines.append("</tbody></table></div></figure>")
    return "".join(lines)


def _cell(tag: str, cell: Cell, text: bool) -> str:
    kind = "" if text else ' class="number"'
    if isinstance(cell, str):
        return f"<{tag}{kind}>{escape(cell)}</{tag}>"
    style = f' style="{escape(cell.style)}"' if cell.style else ""
    return f"<{tag}{kind}{style}>{cell.html}</{tag}>"
