"""The JSON of attribution graphs, which circuit-tracer's viewer and Neuronpedia open.

The format is Anthropic's (Ameisen et al. 2025, "Circuit Tracing"), as circuit-tracer writes it
and as Neuronpedia's schema describes it. What the two viewers need beyond that schema:

- both draw a node in the row of its layer, tokens in row 0, and Neuronpedia refuses a graph
  whose highest row is 0: the heads of layer l stand in row 2l + 1, its MLP in row 2l + 2;
- circuit-tracer's viewer knows nodes by `jsNodeId`, Neuronpedia by `node_id`: both are equal here;
- both count occurrences of (layer, feature, ctx_idx), and circuit-tracer's drops what occurs in
  more than two thirds of the tokens, so everything in a prompt of one token: such a prompt gets
  a second, empty token;
- both cut a probability out of a target's label, which therefore ends in "(p=...)";
- `influence` is a cumulative fraction, small where a node matters, hidden above the threshold;
- both compute scores from an order of the node types they know, so no others are used.
"""

import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from tl_bilinear.circuits.circuit import Circuit, Node, summed
from tl_bilinear.circuits.plain import to_plain

NAME = re.compile(r"[A-Za-z0-9_.-]+")
FEATURE = "cross layer transcoder"
ERROR = "mlp reconstruction error"
TOKEN = "embedding"
TARGET = "logit"
THRESHOLD = 1.0  # nothing is hidden: the circuit has been pruned already
PINNED = 12
PADDING = ""


def to_attribution_graph(circuit: Circuit, slug: str, scan: str | None = None) -> dict[str, Any]:
    """See `Circuit.to_attribution_graph`."""
    scan = scan or re.sub(r"[^A-Za-z0-9_.-]+", "-", circuit.provenance.model) or "model"
    require_name("slug", slug)
    require_name("scan", scan)
    rows = _rows(circuit)
    ids = _ids(circuit, rows)
    links = [
        {"source": edge.source, "target": edge.target, "weight": edge.share}
        for edge in summed(circuit.edges, ids)
    ]
    influence = _influence(circuit)
    nodes: dict[str, dict[str, Any]] = {}
    for node in circuit.nodes:
        written = _node(circuit, node, ids[node.id], rows[node.id], influence.get(node.id))
        first = nodes.setdefault(ids[node.id], written)
        if first is not written:  # remainders of one place are one error node
            first["clerp"] += f"; {written['clerp']}"
            first["share"] += written["share"]
            first["influence"] = min(first["influence"], written["influence"])
    if not any(node["feature_type"] in (FEATURE, ERROR) for node in nodes.values()):
        _add_empty_row(circuit, ids, nodes, links)
    return {
        "metadata": _metadata(circuit, slug, scan),
        "qParams": {
            "pinnedIds": _pinned(circuit, ids),
            "supernodes": [],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": list(nodes.values()),
        "links": links,
        "bilinear_interactions": _interactions(circuit, ids),
        "bilinear": {
            "target_label": circuit.target_label,
            "target": float(circuit.target),
            "kept_share": circuit.kept_share,
            "remainder": circuit.remainder,
            "provenance": str(circuit.provenance),
        },
    }


def require_name(what: str, name: str) -> None:
    """Complain of a name that the viewers would not take.

    Raises:
        ValueError: other characters than letters, digits, _, - and dot.
    """
    if not NAME.fullmatch(name):
        raise ValueError(
            f"the {what} {name!r} is a file's name in the viewers: give letters, digits, '_', '-' "
            "and '.' only"
        )


def cantor(layer: int, index: int) -> int:
    """The one number that stands for a layer and an index (schema_version 1)."""
    return (layer + index) * (layer + index + 1) // 2 + index


def _rows(circuit: Circuit) -> dict[str, int]:
    """The row of every node: tokens 0, heads 2l + 1, MLPs 2l + 2, targets on top.

    A node of no layer stands just above its inputs.
    """
    inputs: dict[str, list[str]] = {node.id: [] for node in circuit.nodes}
    for edge in circuit.edges:
        inputs[edge.target].append(edge.source)
    rows: dict[str, int] = {}
    for node in circuit.nodes:
        if node.kind == "token":
            rows[node.id] = 0
        elif node.layer is not None:
            rows[node.id] = 2 * node.layer + (1 if node.kind == "head" else 2)
        else:
            rows[node.id] = 1 + max((rows[source] for source in inputs[node.id]), default=0)
    inner = [rows[node.id] for node in circuit.nodes if node.kind != "logit"]
    top = 1 + max(2 * circuit.n_layers, 2, *inner)
    return rows | {node.id: top for node in circuit.nodes if node.kind == "logit"}


def _place(circuit: Circuit, node: Node) -> int:
    """Its position; the last where it has none."""
    last = max(len(circuit.tokens) - 1, 0)
    return last if node.position is None else node.position


def _ids(circuit: Circuit, rows: Mapping[str, int]) -> dict[str, str]:
    """{layer}_{index}_{ctx} of every node: unique, except that remainders of a place share one."""
    ids: dict[str, str] = {}
    taken: set[str] = set()
    for node in circuit.nodes:
        ctx, row = _place(circuit, node), rows[node.id]
        layer = "E" if node.kind == "token" else str(row)
        if node.kind == "remainder":
            ids[node.id] = f"{layer}_-1_{ctx}"
            continue
        index = node.index or 0
        if node.kind == "head" and node.source_position is not None:
            index = cantor(node.source_position, index)  # one number for a head and its source
        while f"{layer}_{index}_{ctx}" in taken:
            index += 1
        ids[node.id] = f"{layer}_{index}_{ctx}"
        taken.add(ids[node.id])
    return ids


def _influence(circuit: Circuit) -> dict[str, float]:
    """Of the inner nodes by falling |share|: what they and all before them sum to, in (0, 1]."""
    inner = [node for node in circuit.nodes if node.kind not in ("token", "logit")]
    inner.sort(key=lambda node: -abs(node.share))
    total = sum(abs(node.share) for node in inner) or 1.0
    found, so_far = {}, 0.0
    for node in inner:
        so_far += abs(node.share)
        found[node.id] = min(so_far / total, THRESHOLD)
    return found


def _node(
    circuit: Circuit, node: Node, name: str, row: int, influence: float | None
) -> dict[str, Any]:
    layer, index, ctx = name.split("_")
    kind = {"token": TOKEN, "logit": TARGET, "remainder": ERROR}.get(node.kind, FEATURE)
    probability = node.details.get("probability")
    probability = float(probability) if isinstance(probability, int | float) else 1.0
    activation = node.details.get("activation")
    return {
        "node_id": name,
        "feature": cantor(row, int(index)) if kind == FEATURE else int(index),
        "layer": layer,
        "ctx_idx": int(ctx),
        "feature_type": kind,
        "token_prob": probability if kind == TARGET else 0.0,
        "is_target_logit": kind == TARGET,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": name,
        "clerp": _target_label(node, probability) if kind == TARGET else node.label,
        "influence": influence,
        "activation": float(activation) if isinstance(activation, int | float) else None,
        "share": float(node.share),
        "kind": node.kind,
        "details": to_plain(node.details, f"node {node.id!r}"),
    }


def _target_label(node: Node, probability: float) -> str:
    # The viewers cut the token out between quotes, and the probability behind the first "(p=".
    token = node.label.replace('"', "”").replace("(p=", "(p =")
    return f'Output "{token}" (p={probability:.3f})'


def _add_empty_row(
    circuit: Circuit, ids: Mapping[str, str], nodes: dict[str, Any], links: list[dict[str, Any]]
) -> None:
    """A remainder of zero, for a circuit of direct paths: the viewers need a row between."""
    target = next(node for node in circuit.nodes if node.kind == "logit")
    place = _place(circuit, target)
    empty = Node("", "remainder", "nothing was left out", 0.0, 0, target.position)
    name = f"2_-1_{place}"
    nodes[name] = _node(circuit, empty, name, 2, THRESHOLD)
    links.append({"source": name, "target": ids[target.id], "weight": 0.0})


def _pinned(circuit: Circuit, ids: Mapping[str, str]) -> list[str]:
    targets = [node for node in circuit.nodes if node.kind == "logit"]
    tokens = sorted(
        (node for node in circuit.nodes if node.kind == "token"), key=lambda n: -abs(n.share)
    )
    return [ids[node.id] for node in (*targets, *circuit.top(PINNED), *tokens[: PINNED // 2])]


def _interactions(circuit: Circuit, ids: Mapping[str, str]) -> list[dict[str, Any]]:
    """Every unsplit pair term: what enters it, and its share."""
    return [
        {
            "node": ids[node.id],
            "factors": [ids[edge.source] for edge in circuit.edges if edge.target == node.id],
            "targets": [ids[edge.target] for edge in circuit.edges if edge.source == node.id],
            "share": float(node.share),
        }
        for node in circuit.nodes
        if node.kind == "join"
    ]


def _metadata(circuit: Circuit, slug: str, scan: str) -> dict[str, Any]:
    tokens = list(circuit.tokens)
    tokens += [PADDING] * (2 - len(tokens))
    return {
        "slug": slug,
        "scan": scan,
        "transcoder_list": [],
        "prompt_tokens": tokens,
        "prompt": "".join(circuit.tokens),
        "node_threshold": THRESHOLD,
        "schema_version": 1,
        "info": {
            "description": (
                f"{circuit.target_label}. Eigenmodes of bilinear MLPs, from the weights. Row "
                "2l + 1 holds the heads of layer l, row 2l + 2 its MLP; a link's weight is the "
                "share of the target, in logits, that flows along it; error nodes are what was "
                "not followed; nodes of no position stand at the last token."
                + (" The empty last token is no part of the prompt." * (len(circuit.tokens) < 2))
            ),
            "generator": {"name": "tl_bilinear", "version": version("tl_bilinear")},
        },
        "generation_settings": to_plain(circuit.settings, "the settings"),
        "pruning_settings": {"node_threshold": THRESHOLD, "edge_threshold": 1.0},
    }
