"""A circuit into a file whose name says what is written."""

import io
import json
from pathlib import Path

from tl_bilinear.circuits.attribution_folder import add_to_folder
from tl_bilinear.circuits.attribution_graph import require_name
from tl_bilinear.circuits.circuit import Circuit
from tl_bilinear.optimisation.files import replace_file
from tl_bilinear.report.write import require_writable

FORMATS = {
    ".svg": "a figure",
    ".png": "a figure",
    ".pdf": "a figure",
    ".html": "an interactive page",
    ".json": "our own JSON, or an attribution graph",
    ".dot": "Graphviz",
    ".mmd": "Mermaid",
    ".graphml": "GraphML",
}


def require_format(path: Path, slug: str | None) -> None:
    """Complain, before anything is computed, of what could not be written afterwards.

    Raises:
        ValueError: an unknown suffix, or an attribution graph in a file of another.
        OSError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    if slug is not None:
        require_name("slug", slug)
        if path.is_dir() or not suffix:
            return
        if suffix != ".json":
            raise ValueError(
                f"an attribution graph is a .json file or a folder of them, got {path.name}"
            )
    if suffix not in FORMATS:
        raise ValueError(f"{path.name}: give one of the suffixes {', '.join(FORMATS)}")
    require_writable(path)


def write_circuit(circuit: Circuit, path: Path, slug: str | None, width: float) -> Path:
    """Write a circuit as its suffix says, whole or not at all; with a slug as attribution graph.

    Args:
        slug: the graph's name in circuit-tracer's viewer and on Neuronpedia; a `path` without
            suffix is then a folder, as circuit-tracer's viewer serves it.
        width: of a figure, in inches.
    """
    suffix = path.suffix.lower()
    if slug is not None:
        if path.is_dir() or not suffix:
            return add_to_folder(circuit, path, slug)
        graph = circuit.to_attribution_graph(slug)
        replace_file(path, json.dumps(graph, allow_nan=False).encode("ascii"))
    elif suffix == ".json":
        circuit.save(path)
    elif suffix in (".svg", ".png", ".pdf"):
        from tl_bilinear.views import circuit_figure, save_figure

        save_figure(circuit_figure(circuit, width=width), path)
    else:
        replace_file(path, _text(circuit, suffix))
    return path


def _text(circuit: Circuit, suffix: str) -> bytes:
    if suffix == ".graphml":
        import networkx

        buffer = io.BytesIO()
        networkx.write_graphml(circuit.to_networkx(), buffer)
        return buffer.getvalue()
    if suffix == ".html":
        from tl_bilinear.views import circuit_page

        return circuit_page(circuit).encode("utf-8")
    text = circuit.to_dot() if suffix == ".dot" else circuit.to_mermaid()
    return text.encode("utf-8")
