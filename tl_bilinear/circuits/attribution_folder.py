"""Attribution graphs in the folder that circuit-tracer's local viewer serves."""

import json
from pathlib import Path

from tl_bilinear.checkpoints.json_file import parse_json
from tl_bilinear.circuits.circuit import Circuit
from tl_bilinear.optimisation.files import replace_file

INDEX = "graph-metadata.json"


def add_to_folder(circuit: Circuit, folder: str | Path, slug: str) -> Path:
    """Write `slug`.json and name it in graph-metadata.json, where other graphs stay named.

    Returns:
        The graph's path. Show it with circuit-tracer: `circuit-tracer start-server
        --graph_file_dir FOLDER`.

    Raises:
        ValueError: a slug that is no file's name, or a graph-metadata.json of another form.
    """
    folder = Path(folder)
    graph = circuit.to_attribution_graph(slug)
    index = folder / INDEX
    listed = _listed(index) if index.exists() else []
    listed = [entry for entry in listed if entry.get("slug") != slug] + [graph["metadata"]]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slug}.json"
    replace_file(path, json.dumps(graph, allow_nan=False).encode("ascii"))
    replace_file(index, json.dumps({"graphs": listed}, allow_nan=False).encode("ascii"))
    return path


def _listed(index: Path) -> list[dict]:
    try:
        graphs = parse_json(index.read_bytes())["graphs"]
        if all(isinstance(graph, dict) for graph in graphs):
            return list(graphs)
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f'{index} is no list of graphs ({{"graphs": [...]}}): give another folder')
