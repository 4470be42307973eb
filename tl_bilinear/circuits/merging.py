"""Several nodes of a circuit drawn together as one."""

import heapq
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tl_bilinear.circuits.circuit import Circuit, Edge, Node, summed


def merge(circuit: Circuit, groups: Mapping[str, Sequence[str]]) -> Circuit:
    """The circuit with each group as one node; see `Circuit.merge`. O(edges + nodes log nodes)."""
    owner = _owners(circuit, groups)
    edges = [edge for edge in summed(circuit.edges, owner) if edge.source != edge.target]
    nodes = [node for node in circuit.nodes if node.id not in owner]
    nodes += [_supernode(circuit, name, members, edges) for name, members in groups.items()]
    place = {node.id: i for i, node in enumerate(circuit.nodes)}
    # As late as its last member: the target, which nothing follows, stays last.
    for name, members in groups.items():
        place[name] = max(place[member] for member in members)
    return replace(circuit, nodes=_ordered(nodes, edges, place), edges=tuple(edges))


def _owners(circuit: Circuit, groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The group of each node that is in one; complaints about groups that cannot be."""
    sources = {node.id for node in circuit.sources}
    owner: dict[str, str] = {}
    for name, members in groups.items():
        if not name or not members:
            raise ValueError(f"the group {name!r} of {list(members)}: give a name and its nodes")
        for member in members:
            node = circuit._by_id.get(member)
            if node is None:
                raise ValueError(
                    f"the group {name!r} names the node {member!r}, which is not there"
                )
            if node.kind == "logit":
                raise ValueError(f"the group {name!r} holds the target {member!r}: leave it out")
            if member in owner:
                raise ValueError(f"the node {member!r} stands twice: each node in one group, once")
            owner[member] = name
        rests = [m for m in members if circuit.node(m).kind == "remainder"]
        if rests and len(rests) < len(members):
            raise ValueError(
                f"the group {name!r} holds remainders ({rests[:3]}) beside nodes that are none: "
                "what was not followed must stay apart"
            )
        inside = set(members)
        entered = any(e.target in inside and e.source not in inside for e in circuit.edges)
        mixed = [member for member in members if member in sources] if entered else []
        if mixed:
            raise ValueError(
                f"the group {name!r} holds sources ({mixed[:3]}) beside nodes that others flow "
                "into, so that less would enter it than leaves it: leave its sources out, or "
                "merge them by themselves"
            )
    clash = sorted(set(groups) & (set(circuit._by_id) - set(owner)))
    if clash:
        raise ValueError(f"the group {clash[0]!r} has the id of a node: give another name")
    return owner


def _supernode(circuit: Circuit, name: str, ids: Sequence[str], edges: Sequence[Edge]) -> Node:
    members = [circuit.node(member) for member in ids]
    outflow = [edge.share for edge in edges if edge.source == name]
    inflow = [edge.share for edge in edges if edge.target == name]
    layers = {node.layer for node in members}
    positions = {node.position for node in members}
    return Node(
        id=name,
        kind="remainder" if members[0].kind == "remainder" else "supernode",
        label=name,
        share=math.fsum(outflow or inflow),
        layer=layers.pop() if len(layers) == 1 else None,
        position=positions.pop() if len(positions) == 1 else None,
        details={
            "members": list(ids),
            "member_labels": [node.label for node in members],
            "member_shares": [node.share for node in members],
        },
    )


def _ordered(
    nodes: Sequence[Node], edges: Sequence[Edge], place: Mapping[str, int]
) -> tuple[Node, ...]:
    """Nodes so that every edge goes forward, otherwise in their places."""
    by_id = {node.id: node for node in nodes}
    after: dict[str, list[str]] = defaultdict(list)
    waiting = dict.fromkeys(by_id, 0)
    for edge in edges:
        after[edge.source].append(edge.target)
        waiting[edge.target] += 1
    heap = [(place[name], name) for name, count in waiting.items() if not count]
    heapq.heapify(heap)
    found = []
    while heap:
        name = heapq.heappop(heap)[1]
        found.append(by_id[name])
        for target in after[name]:
            waiting[target] -= 1
            if not waiting[target]:
                heapq.heappush(heap, (place[target], target))
    if len(found) < len(nodes):
        stuck = [name for name, count in waiting.items() if count and name in place]
        supernodes = [name for name in stuck if by_id[name].kind in ("supernode", "remainder")]
        raise ValueError(
            f"merging would make a cycle through {supernodes[:3]}: something outside lies "
            "between their nodes; merge that as well, or leave one side out"
        )
    return tuple(found)
