"""What must hold at every node of a circuit."""

from collections import defaultdict
from math import fsum

from tl_bilinear.circuits import Circuit

INNER = ("mode", "head", "join")


def size(circuit: Circuit) -> float:
    """Of the numbers that a circuit's sums are made of."""
    return max(fsum(abs(node.share) for node in circuit.sources), abs(circuit.target))


def complaints(circuit: Circuit, exact: float, models: float) -> list[str]:
    """Nodes whose flows do not sum (to `exact`), and a target that is missed (by `models`)."""
    scale, found = size(circuit), []
    entering, leaving = defaultdict(list), defaultdict(list)
    for edge in circuit.edges:
        entering[edge.target].append(edge.share)
        leaving[edge.source].append(edge.share)
    for node in circuit.nodes:
        limit = models if node.kind == "logit" else exact
        if node.kind != "logit" and abs(fsum(leaving[node.id]) - node.share) > exact * scale:
            found.append(f"{node.id}: {fsum(leaving[node.id])} leaves of {node.share}")
        enters = node.kind in (*INNER, "logit") or entering[node.id]
        if enters and abs(fsum(entering[node.id]) - node.share) > limit * scale:
            found.append(f"{node.id}: {fsum(entering[node.id])} enters of {node.share}")
    if not abs(circuit.discrepancy) <= models * scale:
        found.append(f"the sources miss the target by {circuit.discrepancy}")
    return found
