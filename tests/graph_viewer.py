"""A graph's JSON as its two readers see it: a schema, and the scripts of the viewers.

`Viewer` does with a graph what the two viewers' scripts do before they draw it (facts,
views_and_graphs.md section 3.2, "Traps"), and fails where they would.
"""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

SCHEMA = json.loads(Path(__file__).with_name("attribution_graph_schema.json").read_text())
TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "null": type(None),
}


def complaints(value: Any, schema: dict[str, Any], where: str = "graph") -> list[str]:
    """What JSON Schema's type, required, properties, items and pattern find wrong."""
    kinds = schema.get("type", list(TYPES))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    fits = any(
        isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
        for kind in kinds
    )
    if not fits:
        return [f"{where} is a {type(value).__name__}, not {kinds}"]
    found = []
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        found.append(f"{where}: {value!r} does not match")
    if isinstance(value, dict):
        found += [f"{where} lacks {key}" for key in schema.get("required", []) if key not in value]
        for key, part in schema.get("properties", {}).items():
            found += complaints(value[key], part, f"{where}.{key}") if key in value else []
    if isinstance(value, list):
        for i, item in enumerate(value):
            found += complaints(item, schema.get("items", {}), f"{where}[{i}]")
    return found


class Viewer:
    """What a viewer makes of a graph; complaints where it dies or hides something."""

    def __init__(self, graph: dict[str, Any]):
        self.graph = graph
        self.nodes = graph["nodes"]
        self.tokens = graph["metadata"]["prompt_tokens"]

    def faults(self) -> list[str]:
        return [fault for check in self.CHECKS for fault in check(self)]

    def no_layer_found(self) -> list[str]:
        """Neuronpedia: `if (!maxLayer) throw`, over nodes that are no targets."""
        layers = [
            int(n["layer"])
            for n in self.nodes
            if n["feature_type"] != "logit" and n["layer"] != "E"
        ]
        return [] if max(layers, default=0) else ["No layer found"]

    def rows_shared_with_tokens(self) -> list[str]:
        return [
            f"{n['node_id']} stands in the tokens' row" for n in self.nodes if n["layer"] == "0"
        ]

    def target_without_probability(self) -> list[str]:
        """`+clerp.split('(p=')[1].split(')')[0]`, and the token between the first quotes."""
        found = []
        for node in self.nodes:
            if node["feature_type"] != "logit":
                continue
            try:
                float(node["clerp"].split("(p=")[1].split(")")[0])
                node["clerp"].split('"')[1].split('" k(p=')[0]
            except (IndexError, ValueError):
                found.append(f"{node['clerp']!r} ends the viewer")
            if not re.fullmatch(r'Output "[^"]*" \(p=\d\.\d{3}\)', node["clerp"]):
                found.append(f"{node['clerp']!r} is misread")
        return found

    def target_not_on_top(self) -> list[str]:
        top = max(
            (
                int(n["layer"])
                for n in self.nodes
                if n["feature_type"] not in ("logit", "embedding")
            ),
            default=0,
        )
        return [
            n["node_id"]
            for n in self.nodes
            if n["feature_type"] == "logit" and int(n["layer"]) <= top
        ]

    def ids_twice(self) -> list[str]:
        found = []
        for key in ("node_id", "jsNodeId"):
            counts = Counter(node[key] for node in self.nodes)
            found += [f"{key} {name} occurs {n} times" for name, n in counts.items() if n > 1]
        return found

    def dropped_for_frequency(self) -> list[str]:
        """circuit-tracer drops what occurs in more than two thirds of the tokens."""
        counts = Counter((n["layer"], n["feature"], n["ctx_idx"]) for n in self.nodes)
        return [f"{key} is dropped" for key, n in counts.items() if n > len(self.tokens) * 2 / 3]

    def hidden_by_influence(self) -> list[str]:
        threshold = self.graph["metadata"]["node_threshold"]
        return [n["node_id"] for n in self.nodes if (n["influence"] or 0) > threshold]

    def wrong_ids(self) -> list[str]:
        """{layer}_{index}_{ctx}, E_{token}_{ctx}, {layer}_-1_{ctx}; features Cantor-paired."""
        found = []
        for node in self.nodes:
            layer, index, ctx = node["node_id"].split("_")
            right = layer == node["layer"] and int(ctx) == node["ctx_idx"]
            kind = node["feature_type"]
            if kind == "cross layer transcoder":
                w = (math.isqrt(8 * node["feature"] + 1) - 1) // 2
                back = node["feature"] - w * (w + 1) // 2
                right &= (w - back, back) == (int(layer), int(index))
            right &= (kind == "embedding") == (layer == "E")
            right &= (kind == "mlp reconstruction error") == (index == "-1")
            if not right:
                found.append(f"{node['node_id']} of {kind} has a wrong id")
        return found

    def positions_beyond_the_prompt(self) -> list[str]:
        return [n["node_id"] for n in self.nodes if not 0 <= n["ctx_idx"] < len(self.tokens)]

    def token_renamed(self) -> list[str]:
        """A token's label is overwritten from `prompt_tokens`."""
        return [
            n["clerp"]
            for n in self.nodes
            if n["feature_type"] == "embedding" and n["clerp"] != self.tokens[n["ctx_idx"]]
        ]

    def unknown_types(self) -> list[str]:
        """The scores order nodes by the types that they know; others would stand behind targets."""
        known = {"cross layer transcoder", "mlp reconstruction error", "embedding", "logit"}
        return [n["node_id"] for n in self.nodes if n["feature_type"] not in known]

    def loose_links(self) -> list[str]:
        ids = {node["node_id"] for node in self.nodes}
        ends = [end for link in self.graph["links"] for end in (link["source"], link["target"])]
        return [end for end in [*ends, *self.graph["qParams"]["pinnedIds"]] if end not in ids]

    CHECKS = (
        no_layer_found,
        rows_shared_with_tokens,
        target_without_probability,
        target_not_on_top,
        ids_twice,
        dropped_for_frequency,
        hidden_by_influence,
        wrong_ids,
        positions_beyond_the_prompt,
        token_renamed,
        unknown_types,
        loose_links,
    )
