"""A circuit in the languages of two diagram programs: Graphviz and Mermaid."""

from tl_bilinear.characters import visible
from tl_bilinear.circuits.circuit import Circuit, Node

# Okabe and Ito's blue and orange, as in the figures of views/.
POSITIVE = "#0072b2"
NEGATIVE = "#d55e00"
FAINT = "#aaaaaa"
WIDEST = 6.0

DOT_SHAPES = {
    "token": "box",
    "bias": "box",
    "head": "cds",
    "mode": "ellipse",
    "join": "circle",
    "change": "hexagon",
    "remainder": "plaintext",
    "supernode": "box3d",
    "logit": "box",
}
# Opening and closing of a Mermaid node; what stands between is quoted.
MERMAID_SHAPES = {
    "token": ("[", "]"),
    "bias": ("[", "]"),
    "head": (">", "]"),
    "mode": ("(", ")"),
    "join": ("((", "))"),
    "change": ("{{", "}}"),
    "remainder": ("([", "])"),
    "supernode": ("[[", "]]"),
    "logit": ("[", "]"),
}


def to_dot(circuit: Circuit) -> str:
    """See `Circuit.to_dot`."""
    names = {node.id: f"n{i}" for i, node in enumerate(circuit.nodes)}
    lines = [
        "digraph circuit {",
        f"  graph [rankdir=BT, charset={dot_string('UTF-8')}, label={dot_string(_title(circuit))}]",
        '  node [fontname="DejaVu Sans", fontsize=10, margin="0.08,0.04"]',
        '  edge [fontname="DejaVu Sans", fontsize=8, arrowsize=0.5]',
    ]
    for node in circuit.nodes:
        color = FAINT if node.kind == "remainder" else _color(node.share)
        lines.append(
            f"  {names[node.id]} [label={dot_string(*_lines(node))}, "
            f"shape={DOT_SHAPES[node.kind]}, color={dot_string(color)}, "
            f"id={dot_string(node.id)}]"
        )
    for source, target, share, width in _drawn_edges(circuit):
        faint = circuit.node(source).kind == "remainder"
        style = f"color={dot_string(FAINT if faint else _color(share))}, penwidth={width:.2f}"
        style += ", style=dashed" if faint else ""
        label = f"label={dot_string(f'{share:+.3g}')}"
        lines.append(f"  {names[source]} -> {names[target]} [{style}, {label}]")
    tokens = [names[node.id] for node in circuit.nodes if node.kind == "token"]
    if tokens:
        lines.append(f"  {{ rank=min; {'; '.join(tokens)} }}")
    return "\n".join([*lines, "}"]) + "\n"


def to_mermaid(circuit: Circuit) -> str:
    """See `Circuit.to_mermaid`."""
    names = {node.id: f"n{i}" for i, node in enumerate(circuit.nodes)}
    lines = ["flowchart BT"]
    for node in circuit.nodes:
        opening, closing = MERMAID_SHAPES[node.kind]
        label = "<br/>".join(mermaid_text(line) for line in _lines(node))
        lines.append(f'  {names[node.id]}{opening}"{label}"{closing}')
    edges = _drawn_edges(circuit)
    for source, target, share, _ in edges:
        arrow = "-.->" if circuit.node(source).kind == "remainder" else "-->"
        lines.append(f'  {names[source]} {arrow}|"{share:+.3g}"| {names[target]}')
    for number, (source, _, share, width) in enumerate(edges):
        color = FAINT if circuit.node(source).kind == "remainder" else _color(share)
        lines.append(f"  linkStyle {number} stroke:{color},stroke-width:{width:.2f}px")
    return "\n".join(lines) + "\n"


def dot_string(*lines: str) -> str:
    """Lines as one quoted DOT string.

    Backslashes and quotes end or change a string, `&` begins an entity there, and a NUL ends
    the file: control characters are shown by name.
    """
    escaped = (
        visible(line).replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")
        for line in lines
    )
    return '"' + "\\n".join(escaped) + '"'


def mermaid_text(text: str) -> str:
    """Text for a quoted Mermaid label: all ASCII punctuation by number, as `#35;`.

    Quotes end a label, `#` and `;` make entities, `<` markup, backticks Markdown, `$$` a formula,
    `%%{` a directive, and a label that begins like a list is refused.
    """
    shown = visible(text)
    return "".join(
        f"#{ord(c)};" if c.isascii() and not (c.isalnum() or c == " ") else c for c in shown
    )


def _title(circuit: Circuit) -> str:
    return (
        f"{circuit.target_label}: {circuit.target:+.4g} logits, completeness "
        f"{circuit.completeness:.3g}, kept share {circuit.kept_share:.3g}"
    )


def _lines(node: Node) -> tuple[str, ...]:
    # The number has a line of its own: beside right-to-left text it would change places.
    label = f"“{visible(node.label)}”" if node.kind == "token" else node.label
    where = [f"L{node.layer}"] if node.layer is not None else []
    where += [f"position {node.position}"] if node.position is not None else []
    return (label, *([" ".join(where)] if where else []), f"{node.share:+.4g}")


def _drawn_edges(circuit: Circuit) -> list[tuple[str, str, float, float]]:
    """(source, target, share, width) of every edge; the widest is the largest |share|."""
    largest = max((abs(edge.share) for edge in circuit.edges), default=0.0) or 1.0
    return [
        (edge.source, edge.target, edge.share, max(0.3, WIDEST * abs(edge.share) / largest))
        for edge in circuit.edges
    ]


def _color(share: float) -> str:
    return POSITIVE if share >= 0 else NEGATIVE
