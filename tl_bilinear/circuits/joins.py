"""Pair terms left whole: nodes between two sources and the mode that multiplies them.

A mode's share F = lambda (v . x)^2 has the flows f_s = lambda (v . x)(v . x_s) of the sources of
x, so the product of two of them, 2 lambda (v . x_s)(v . x_t), is 2 f_s f_t / F. As a join node it
takes half of itself from each of the two; what stays on a source's edge is its own square and its
half of the joins that are too small. Nothing else changes: joins add up to the equal split.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import torch

from tl_bilinear.circuits.circuit import Circuit, Edge, Node


def unsplit(circuit: Circuit, threshold: float | None = None) -> Circuit:
    """The circuit with a join for every pair whose |share| reaches the threshold.

    Args:
        threshold: that which the circuit was traced with where it is None.

    Raises:
        ValueError: a circuit of another basis than eigenmodes, or a contrast.
    """
    if circuit.settings.get("basis") != "eigenmodes" or len(circuit.provenance.frozen) == 0:
        raise ValueError("only circuits of eigenmodes on one prompt have pair terms to join")
    smallest = circuit.settings["threshold"] if threshold is None else threshold
    entering: dict[str, dict[str, float]] = defaultdict(dict)
    for edge in circuit.edges:
        entering[edge.target][edge.source] = edge.share
    nodes, edges = [], []
    for node in circuit.nodes:
        flows = entering[node.id]
        if node.kind == "mode":
            made, flows = _joins(circuit, node, flows, smallest)
            nodes += [join for join, _ in made]
            for join, pair in made:
                edges += [Edge(source, join.id, join.share / 2) for source in pair]
                edges.append(Edge(join.id, node.id, join.share))
        nodes.append(node)
        edges += [Edge(source, node.id, share) for source, share in flows.items()]
    settings = {**circuit.settings, "joins": smallest}
    return replace(circuit, nodes=tuple(nodes), edges=tuple(edges), settings=settings)


def _joins(
    circuit: Circuit, mode: Node, flows: Mapping[str, float], smallest: float
) -> tuple[list[tuple[Node, tuple[str, str]]], dict[str, float]]:
    """A mode's joins with their pairs, and what stays on the edges of its sources."""
    names = list(flows)
    values = torch.tensor([flows[name] for name in names], dtype=torch.float64)
    pairs = 2 * torch.outer(values, values) / mode.share
    made, left = [], dict(flows)
    for s, t in (pairs.triu(1).abs() >= smallest).nonzero().tolist():
        share = float(pairs[s, t])
        if s == t or not share:
            continue
        pair = (names[s], names[t])
        labels = [circuit.node(name).label for name in pair]
        join = Node(
            id=f"{mode.id}({pair[0]}×{pair[1]})",
            kind="join",
            label=" × ".join(labels),
            share=share,
            layer=mode.layer,
            position=mode.position,
        )
        made.append((join, pair))
        for name in pair:
            left[name] -= share / 2
    return made, left
