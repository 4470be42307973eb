"""What a node is called in a picture, and what is said about it."""

from collections.abc import Callable
from typing import Any

from tl_bilinear.circuits.circuit import Circuit, Node
from tl_bilinear.views.text import signed, visible

ELLIPSIS = "…"
KINDS = {
    "token": "token",
    "bias": "bias",
    "head": "attention head",
    "mode": "mode",
    "join": "pair term",
    "change": "change",
    "remainder": "not followed",
    "supernode": "merged nodes",
    "logit": "target",
}

Measure = Callable[[str, float], float]
"""The width of a text at a font size, both in the units of the picture."""


def shown_token(token: str) -> str:
    """A token in a picture: without the space before it, a lone space marked."""
    return visible(token[1:] if token.startswith(" ") and token.strip() else token).replace(
        " ", "␣" if not token.strip() else " "
    )


def top_tokens(node: Node) -> list[str]:
    """The tokens that a node's details name first; none where there are no such details."""
    for key, value in node.details.items():
        if key.startswith("top") and isinstance(value, list | tuple) and value:
            tokens = [item if isinstance(item, str) else _first(item) for item in value]
            if all(isinstance(token, str) for token in tokens):
                return [str(token) for token in tokens]
    return []


def _first(item: Any) -> Any:
    """The text of a (text, number) pair."""
    return item[0] if isinstance(item, list | tuple) and item else None


def fitted(text: str, width: float, size: float, measure: Measure) -> str:
    """The text, or as much of it as fits, with an ellipsis."""
    if measure(text, size) <= width:
        return text
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if measure(text[:middle].rstrip() + ELLIPSIS, size) <= width:
            fits = middle
        else:
            too_long = middle
    return text[:fits].rstrip() + ELLIPSIS


def name_of(node: Node, width: float, size: float, measure: Measure) -> str:
    """A node's name within a width: a mode's top tokens, as many as fit, or its label."""
    if node.kind == "token":
        return fitted(shown_token(node.label), width, size, measure)
    if node.kind == "join":
        return "⊗"
    tokens = [shown_token(token) for token in dict.fromkeys(top_tokens(node))]
    if node.kind not in ("mode", "change") or not tokens:
        return fitted(_short_label(node), width, size, measure)
    name = fitted(tokens[0], width, size, measure)
    for token in tokens[1:4]:
        longer = f"{name} · {token}"
        if measure(longer, size) > width:
            break
        name = longer
    return name


def _short_label(node: Node) -> str:
    """A label without what the band that it stands in says: "L3.m4 λ=+0.2" as "m4 λ=+0.2"."""
    label = visible(node.label)
    return label.removeprefix(f"L{node.layer}.") if node.kind == "mode" else label


def title_of(node: Node) -> str:
    """One line that names a node wholly: kind, place, label."""
    where = [f"layer {node.layer}"] if node.layer is not None else []
    if node.source_position is not None:
        where.append(f"position {node.source_position} → {node.position}")
    elif node.position is not None:
        where.append(f"position {node.position}")
    return f"{visible(node.label)} ({', '.join([KINDS[node.kind], *where])})"


def spoken(node: Node) -> str:
    """A node for a screen reader: its title and its share."""
    tokens = ", ".join(map(visible, top_tokens(node)[:3]))
    return f"{title_of(node)}{': ' + tokens if tokens else ''}, {signed(node.share, 3)} logits"


def caption_of(circuit: Circuit, left_out: int = 0) -> str:
    """What a reader must know of a circuit: how much of it is in the picture.

    Args:
        left_out: how many flows are not drawn.
    """
    kept, complete = f"{100 * circuit.kept_share:.0f} %", signed(circuit.completeness, 2)
    frozen = ", ".join(circuit.provenance.frozen) or "nothing"
    rest = f"; {left_out} smaller flows are not drawn" if left_out else ""
    return (
        f"{circuit.provenance.model}. Blue adds to the target, orange takes from it; width is "
        f"|share|{rest}. Kept: {kept} of the sum of |shares|; completeness "
        f"{complete.lstrip('+')}. Dashed grey: not followed ({signed(circuit.remainder, 2)} "
        f"logits). Frozen: {frozen}."
    )


def words(text: str, width: float, size: float, measure: Measure) -> list[str]:
    """Lines of a text within a width."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and measure(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
