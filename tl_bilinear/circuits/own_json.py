"""A circuit as JSON of our own, without loss: every float comes back bit for bit."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tl_bilinear.checkpoints.json_file import parse_json
from tl_bilinear.circuits.circuit import Circuit, Edge, Node
from tl_bilinear.circuits.plain import from_plain, to_plain
from tl_bilinear.hosts.provenance import Provenance
from tl_bilinear.optimisation.files import replace_file

FORMAT = "tl_bilinear circuit"
VERSION = 1


def to_json(circuit: Circuit) -> str:
    """See `Circuit.to_json`."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "tokens": list(circuit.tokens),
        "target_label": circuit.target_label,
        "target": to_plain(circuit.target, "the target"),
        "n_layers": circuit.n_layers,
        "provenance": _fields(circuit.provenance, "the provenance"),
        "settings": to_plain(circuit.settings, "the settings"),
        "nodes": [_fields(node, f"node {node.id!r}") for node in circuit.nodes],
        "edges": [[edge.source, edge.target, float(edge.share)] for edge in circuit.edges],
    }
    return json.dumps(content, allow_nan=False)


def from_json(text: str | bytes, name: str = "this text") -> Circuit:
    """See `Circuit.from_json`."""
    try:
        content = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is no JSON ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{name} is no circuit: its 'format' must be {FORMAT!r}")
    if content.get("version") != VERSION:
        raise ValueError(
            f"{name} has version {content.get('version')!r} of the circuit format, and version "
            f"{VERSION} is read here: open it with the tl_bilinear that wrote it, or a newer one"
        )
    try:
        return Circuit(
            nodes=tuple(_node(node) for node in content["nodes"]),
            edges=tuple(Edge(source, target, _float(v)) for source, target, v in content["edges"]),
            tokens=tuple(content["tokens"]),
            target_label=content["target_label"],
            target=_float(from_plain(content["target"])),
            n_layers=content["n_layers"],
            provenance=_provenance(content["provenance"]),
            settings=from_plain(content["settings"]),
        )
    except KeyError as error:
        raise ValueError(f"{name} is a damaged circuit: it lacks {error}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is a damaged circuit: {error}") from None


def save(circuit: Circuit, path: str | Path) -> None:
    """See `Circuit.save`."""
    replace_file(path, to_json(circuit).encode("ascii"))


def load(path: str | Path) -> Circuit:
    """See `Circuit.load`."""
    return from_json(Path(path).read_bytes(), str(path))


def _fields(value: Node | Provenance, where: str) -> dict[str, Any]:
    return {f.name: to_plain(getattr(value, f.name), where) for f in fields(value)}


def _node(content: Mapping[str, Any]) -> Node:
    known = {f.name for f in fields(Node)}
    if set(content) != known:
        odd = sorted(set(content) ^ known)
        raise ValueError(f"a node has the fields {sorted(content)}, and {odd} are not expected")
    details = from_plain(content["details"])
    return Node(**{**content, "share": _float(content["share"]), "details": details})


def _provenance(content: Mapping[str, Any]) -> Provenance:
    return Provenance(**{**content, "frozen": tuple(content["frozen"])})


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"a share is a number, got {value!r}")
    return float(value)
