"""A circuit as one interactive page that needs no network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl_bilinear.circuits.circuit import Circuit, Node
from tl_bilinear.views.circuit_layout import Layout, lay_out
from tl_bilinear.views.circuit_names import caption_of, title_of, top_tokens
from tl_bilinear.views.circuit_sizes import Sizes
from tl_bilinear.views.circuit_svg import circuit_svg
from tl_bilinear.views.fonts import screen_width
from tl_bilinear.views.page import Page
from tl_bilinear.views.table import Cell, Markup, table
from tl_bilinear.views.text import escape, signed, token_html, visible

SIZES = Sizes(
    width=780, font=12.5, small=10.5, box=126, pad=5, gap=8, wire=28, lane=21, margin=56, widest=7
)
FOLDER = Path(__file__).parent
DIGITS = 4
LISTED = 20
LINES = 8.0
"""Flows in the picture for each node; every flow is in the panel."""
SHOWN = 2.0
"""Of them before the slider is moved."""


def circuit_page(circuit: Circuit) -> str:
    """The whole file: hover for numbers, click a node for its spectrum, tokens and examples.

    Drag to pan, ctrl and wheel or + and - to zoom, a slider hides small flows. Tab reaches every
    node, the up and down keys follow the largest flow, Enter opens a node.
    """
    layout = lay_out(circuit, SIZES, screen_width, per_node=LINES, caption=False)
    left_out = sum(e.source in layout.boxes for e in circuit.edges) - len(layout.wires)
    page = Page(f"Circuit: {visible(circuit.target_label)}")
    page.style((FOLDER / "circuit_page.css").read_text(encoding="utf-8"))
    prompt = "".join(map(token_html, circuit.tokens))
    page.add(
        f"<h1>{escape(visible(circuit.target_label))}: {signed(circuit.target, 3)} logits</h1>",
        f'<p class="prompt">{prompt}</p>',
        f'<p class="lead">{escape(caption_of(circuit, left_out))}</p>',
        CONTROLS,
        '<div class="stage">',
        '<div class="picture" tabindex="0" role="group" aria-label="the circuit">',
        circuit_svg(circuit, layout),
        f'</div><aside class="panel" id="panel" aria-live="polite">{HINT}</aside></div>',
        '<div class="tip" id="tip" hidden></div>',
        _node_table(circuit),
        f'<p class="note">{escape(_origin(circuit))}</p>',
    )
    page.data("circuit", page_data(circuit, layout))
    page.script((FOLDER / "circuit_page.js").read_text(encoding="utf-8"))
    return page.html()


CONTROLS = """<div class="controls">
<label>hide small flows
<input type="range" id="threshold" min="0" max="100" step="any" value="0"></label>
<output id="shown" for="threshold"></output>
<span><button type="button" id="closer" aria-label="zoom in">+</button>
<button type="button" id="farther" aria-label="zoom out">−</button>
<button type="button" id="reset">whole picture</button></span>
</div>"""

HINT = (
    "<p>Point at a node or a line for its number; click a node, or press Enter on it, for all that "
    "is known of it. Tab goes from node to node, ↑ and ↓ along the largest flow. Drag to move, "
    "ctrl and wheel or + and − to zoom, 0 for the whole picture, Escape to let go.</p>"
)


def page_data(circuit: Circuit, layout: Layout) -> dict[str, Any]:
    """What the page's script reads: nodes, edges by falling |share|, and texts of remainders."""
    place = {node.id: i for i, node in enumerate(circuit.nodes)}
    return {
        "nodes": [_node(node) for node in circuit.nodes],
        "edges": [
            {
                "source": place[edge.source],
                "target": place[edge.target],
                "share": _share(edge.share),
            }
            for edge in circuit.edges_by_size
        ],
        "rests": [
            f"not followed: {signed(stub.share, DIGITS)} logits\n"
            + "\n".join(title_of(node) for node in stub.sources[:6])
            + ("\n…" if len(stub.sources) > 6 else "")
            for stub in layout.stubs
        ],
        "start": _start(layout),
        "largest": max((abs(edge.share) for edge in circuit.edges), default=0.0),
    }


def _start(layout: Layout) -> float:
    """The threshold at which about as many flows are shown as in a figure."""
    shares = sorted((abs(wire.edge.share) for wire in layout.wires), reverse=True)
    shown = round(SHOWN * len(layout.boxes))
    return shares[shown] if shown < len(shares) else 0.0


def _node(node: Node) -> dict[str, Any]:
    facts = [["share", f"{signed(node.share, DIGITS)} logits"]]
    details = []
    for key, value in node.details.items():
        name = key.replace("_", " ")
        if isinstance(value, bool | str) or value is None:
            facts.append([name, visible(str(value))])
        elif isinstance(value, int | float):
            facts.append([name, f"{value:.6g}".replace("-", "−")])
        else:
            details.append([name, *_listed(value)])
    return {
        "title": title_of(node),
        "share": _share(node.share),
        "index": node.index if node.kind == "mode" else None,
        "brief": ", ".join(map(visible, top_tokens(node)[:4])),
        "facts": facts,
        "details": details,
    }


def _listed(value: Any) -> tuple[str, Any]:
    """How a list or dictionary of a node's details is shown: by what it holds."""
    items: list[Any] = list(value.items()) if isinstance(value, Mapping) else list(value)
    if items and all(isinstance(v, int | float) and not isinstance(v, bool) for v in items):
        return "numbers", [float(v) for v in items]
    if items and all(isinstance(item, str) for item in items):
        return "tokens", [visible(item) for item in items]
    if items and all(
        isinstance(item, list | tuple)
        and len(item) == 2
        and isinstance(item[0], str)
        and isinstance(item[1], int | float)
        for item in items
    ):
        return "pairs", [[visible(text), _share(float(number))] for text, number in items]
    return "text", visible(str(value))


def _share(value: float) -> dict[str, Any]:
    return {"value": value, "text": signed(value, DIGITS)}


def _node_table(circuit: Circuit) -> str:
    rows: list[list[Cell]] = [
        [
            title_of(node),
            Markup(" ".join(map(token_html, top_tokens(node)[:4]))),
            signed(node.share, DIGITS),
        ]
        for node in circuit.top(LISTED)
    ]
    if not rows:
        return ""
    caption = f"The {len(rows)} nodes of largest |share|, in logits."
    return table(["node", "tokens", "share"], rows, caption=caption, text_columns=2)


def _origin(circuit: Circuit) -> str:
    settings = "; ".join(f"{key}: {visible(str(v))}" for key, v in circuit.settings.items())
    return f"{circuit.provenance}. {settings}".strip()
