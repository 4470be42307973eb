"""A smaller circuit of the same target: what is left out becomes remainder nodes."""

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from tl_bilinear.circuits.circuit import Circuit, Edge, Node, summed


def prune(circuit: Circuit, *, max_nodes: int | None = None, kept: float | None = None) -> Circuit:
    """The circuit of its most important nodes; see `Circuit.prune`. O(edges log nodes)."""
    if (max_nodes is None) == (kept is None):
        raise ValueError("prune by one of `max_nodes` and `kept`: give exactly one of the two")
    order = _from_the_target(circuit)
    if max_nodes is not None:
        if max_nodes < 0:
            raise ValueError(f"`max_nodes` must not be negative, got {max_nodes}")
        return cut(circuit, order[:max_nodes])
    assert kept is not None
    if not 0 <= kept <= 1:
        raise ValueError(f"`kept` is a share between 0 and 1, got {kept}")
    enough = len(order)
    whole = cut(circuit, order)
    # Cutting at nothing changes kept_share by rounding only.
    if whole.kept_share < kept and not math.isclose(whole.kept_share, kept, rel_tol=1e-12):
        raise ValueError(
            f"the whole circuit keeps {whole.kept_share:.4f} of its |shares|, less than "
            f"`kept`={kept}: trace it again with a larger budget"
        )
    too_few = -1
    while enough - too_few > 1:
        half = (enough + too_few) // 2
        if cut(circuit, order[:half]).kept_share >= kept:
            enough = half
        else:
            too_few = half
    return cut(circuit, order[:enough])


def _from_the_target(circuit: Circuit) -> list[str]:
    """Ids of all nodes that reach a target, each after one that it flows into, large first."""
    inputs: dict[str, list[str]] = defaultdict(list)
    for edge in circuit.edges:
        inputs[edge.target].append(edge.source)
    place = {node.id: i for i, node in enumerate(circuit.nodes)}
    seen = {node.id for node in circuit.nodes if node.kind == "logit"}
    heap: list[tuple[float, int, str]] = []
    order = []

    def reach(name: str) -> None:
        for source in inputs[name]:
            node = circuit.node(source)
            if source not in seen and node.kind != "remainder":
                seen.add(source)
                heapq.heappush(heap, (-abs(node.share), place[source], source))

    for name in list(seen):
        reach(name)
    while heap:
        name = heapq.heappop(heap)[2]
        order.append(name)
        reach(name)
    return order


@dataclass
class _Rest:
    """What was cut off at one place and flowed with one sign."""

    node: Node
    flows: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    pruned: list[str] = field(default_factory=list)


def cut(circuit: Circuit, chosen: Iterable[str]) -> Circuit:
    """The circuit of the chosen nodes, its targets and its remainders.

    Walked from the target: an edge out of a node that is not chosen becomes one out of a
    remainder, and the nodes before it lose what flowed only there. A node whose outflow falls
    from s to t keeps the fraction f = sum |outflow kept| / sum |outflow| of each inflow, and
    the difference t - f s is shared among its inflows by size.
    """
    stays = set(chosen) | {n.id for n in circuit.nodes if n.kind in ("logit", "remainder")}
    entering, leaving = defaultdict(list), defaultdict(list)
    for number, edge in enumerate(circuit.edges):
        entering[edge.target].append(number)
        leaving[edge.source].append(number)
    flow: dict[int, float] = {}
    nodes, rests = [], {}
    for node in reversed(circuit.nodes):
        if node.id not in stays:
            continue
        outflow = [flow[number] for number in leaving[node.id] if number in flow]
        share, part, left = node.share, 1.0, 0.0
        if node.kind != "logit":
            if not outflow:
                continue
            before = [circuit.edges[number].share for number in leaving[node.id]]
            size = math.fsum(map(abs, before))
            part = math.fsum(map(abs, outflow)) / size if size else 1.0
            # From the outflow alone: where a circuit does not close, that must stay to be seen.
            left = math.fsum(outflow) - part * math.fsum(before)
            share = part * share + left
        nodes.append(replace(node, share=share))
        inflow = [circuit.edges[number].share for number in entering[node.id]]
        for number, value in zip(entering[node.id], _shrunk(inflow, part, left), strict=True):
            source = circuit.node(circuit.edges[number].source)
            if source.id in stays:
                flow[number] = value
            else:
                _rest(circuit, rests, source, value).flows[node.id].append(value)
    edges = [
        Edge(edge.source, edge.target, flow[number])
        for number, edge in enumerate(circuit.edges)
        if number in flow
    ]
    return _assemble(circuit, nodes[::-1], edges, list(rests.values()))


def _shrunk(inflow: list[float], part: float, left: float) -> list[float]:
    """`part` of each inflow, and what is left over shared by size."""
    sizes = [abs(value) for value in inflow]
    total = math.fsum(sizes)
    even = 1 / max(len(sizes), 1)
    weights = [size / total if total else even for size in sizes]
    return [part * value + left * weight for value, weight in zip(inflow, weights, strict=True)]


def _rest(circuit: Circuit, rests: dict[str, _Rest], source: Node, value: float) -> _Rest:
    # Positive and negative flows apart: else they would cancel, and kept_share would rise.
    sign = "+" if value >= 0 else "−"
    where = [f"L{source.layer}"] if source.layer is not None else []
    where += [f"P{source.position}"] if source.position is not None else []
    name = ".".join(["pruned" + sign, *where])
    taken = circuit._by_id.get(name)
    while taken is not None and taken.kind != "remainder":
        name += "'"
        taken = circuit._by_id.get(name)
    if name not in rests:
        label = f"pruned ({sign})" + (f" at {' '.join(where)}" if where else "")
        rest = Node(name, "remainder", label, 0.0, source.layer, source.position)
        rests[name] = _Rest(rest)
    if source.id not in rests[name].pruned:
        rests[name].pruned.append(source.id)
    return rests[name]


def _assemble(circuit: Circuit, nodes: list[Node], edges: list[Edge], rests: list[_Rest]):
    """Remainders first; one that an earlier pruning left at the same place is continued."""
    present = {node.id: node for node in nodes}
    added = []
    for rest in rests[::-1]:
        name = rest.node.id
        flows = [Edge(name, target, math.fsum(values)) for target, values in rest.flows.items()]
        old = present.get(name)
        share = math.fsum([edge.share for edge in flows] + ([old.share] if old else []))
        pruned = [*(old.details.get("pruned", []) if old else []), *rest.pruned]
        node = replace(old or rest.node, share=share, details={"pruned": pruned})
        if old:
            nodes = [node if other.id == name else other for other in nodes]
            edges = summed([*edges, *flows])
        else:
            added.append(node)
            edges = edges + flows
    settings = {**circuit.settings, "pruned": True}
    return replace(circuit, nodes=(*added, *nodes), edges=tuple(edges), settings=settings)
