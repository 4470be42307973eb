"""A circuit as a networkx graph, plain enough for GraphML."""

import json
from typing import TYPE_CHECKING, Any

from tl_bilinear.characters import code_point
from tl_bilinear.circuits.circuit import Circuit, Node, summed
from tl_bilinear.circuits.plain import to_plain

if TYPE_CHECKING:
    import networkx

PLACE = ("layer", "position", "source_position", "index")


def to_networkx(circuit: Circuit) -> "networkx.DiGraph":
    """See `Circuit.to_networkx`."""
    import networkx

    graph = networkx.DiGraph(
        target=float(circuit.target),
        target_label=xml_text(circuit.target_label),
        tokens=json.dumps(circuit.tokens),
        n_layers=circuit.n_layers,
        completeness=circuit.completeness,
        kept_share=circuit.kept_share,
        provenance=xml_text(str(circuit.provenance)),
        settings=json.dumps(to_plain(circuit.settings, "the settings")),
    )
    for node in circuit.nodes:
        graph.add_node(xml_text(node.id), **_attributes(node))
    for edge in summed(circuit.edges):
        ends = xml_text(edge.source), xml_text(edge.target)
        graph.add_edge(*ends, share=edge.share, weight=abs(edge.share))
    return graph


def _attributes(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = {
        "kind": node.kind,
        "label": xml_text(node.label),
        "share": float(node.share),
        "details": json.dumps(to_plain(node.details, f"node {node.id!r}")),
    }
    # GraphML has no None: what does not apply is left out.
    found |= {name: value for name in PLACE if (value := getattr(node, name)) is not None}
    return found


def xml_text(text: str) -> str:
    """Text with the characters that XML 1.0 cannot hold, or would change, by number.

    The carriage return is among them: a reader of XML makes a newline of it.
    """
    return "".join(c if _in_xml(ord(c)) else code_point(c) for c in text)


def _in_xml(number: int) -> bool:
    return (
        number in (0x9, 0xA)
        or 0x20 <= number <= 0xD7FF
        or 0xE000 <= number <= 0xFFFD
        or 0x10000 <= number <= 0x10FFFF
    )
