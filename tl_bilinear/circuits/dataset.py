"""Circuits of several prompts, and their mean: what recurs."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tl_bilinear.circuits.circuit import Circuit, Edge, Node
from tl_bilinear.circuits.recurring import RecurringMode, find_recurring, from_end
from tl_bilinear.circuits.trace import Prompt, trace_circuit
from tl_bilinear.hosts.target import Target


@dataclass(frozen=True, eq=False)
class CircuitSet:
    """One circuit per prompt, and the modes that they share."""

    circuits: tuple[Circuit, ...]
    modes: tuple[RecurringMode, ...]
    """Strongest first; those of a single prompt as well."""

    def aggregate(self, least: int = 2) -> Circuit:
        """The mean circuit: every share and flow is a mean over the prompts, and is conserved.

        Prompts are laid over one another at their ends. Modes that occur in fewer than `least`
        prompts are one supernode per layer and position. Tokens stand for their position.
        """
        return _aggregate(self, least)

    def recurring(self, least: int = 2) -> tuple[RecurringMode, ...]:
        """The modes of at least so many prompts."""
        return tuple(mode for mode in self.modes if mode.prompts >= least)


def trace_dataset(
    model: Any,
    prompts: Sequence[Prompt],
    targets: Target | Sequence[Target],
    *,
    cosine: float = 0.9,
    by_position: bool = False,
    **options: Any,
) -> CircuitSet:
    """Trace every prompt, and find the modes that recur.

    Args:
        targets: one for all prompts, or a list of one per prompt.
        cosine: of eigenvectors that count as the same (`circuits.recurring` says how).
        by_position: modes are the same only at one position from the end.
        options: of `trace_circuit`.

    Raises:
        ValueError: no prompts, or as many targets as there are no prompts; as `trace_circuit`.
    """
    if options.get("joins"):
        raise ValueError("the mean of circuits has no joins: leave `joins` out, or see .circuits")
    every = targets if isinstance(targets, list) else [targets] * len(prompts)
    if not prompts or len(every) != len(prompts):
        raise ValueError(
            f"give prompts, and a target for all or a list of one each: got {len(prompts)} "
            f"prompts and {len(every)} targets"
        )
    circuits = tuple(
        trace_circuit(model, prompt, target, **options)
        for prompt, target in zip(prompts, every, strict=True)
    )
    return CircuitSet(circuits, find_recurring(circuits, cosine, by_position=by_position))


def _aggregate(found: CircuitSet, least: int) -> Circuit:
    circuits, n = found.circuits, len(found.circuits)
    longest = max(len(circuit.tokens) for circuit in circuits)
    named = {
        place: mode for mode in found.modes if mode.prompts >= least for place in mode.occurrences
    }
    nodes: dict[str, Node] = {}
    shares: dict[str, list[float]] = defaultdict(list)
    flows: dict[tuple[str, str], list[float]] = defaultdict(list)
    for prompt, circuit in enumerate(circuits):
        new: dict[str, str] = {}
        for node in circuit.nodes:
            merged = _merged(circuit, node, named.get((prompt, node.id)), longest)
            new[node.id] = merged.id
            nodes.setdefault(merged.id, merged)
            shares[merged.id].append(node.share / n)
        for edge in circuit.edges:
            flows[new[edge.source], new[edge.target]].append(edge.share / n)
    ordered = sorted(nodes.values(), key=_height)
    return Circuit(
        nodes=tuple(replace(node, share=math.fsum(shares[node.id])) for node in ordered),
        edges=tuple(Edge(a, b, math.fsum(flow)) for (a, b), flow in flows.items()),
        tokens=tuple(_token(circuits, i - longest) for i in range(longest)),
        target_label=f"mean of {n} targets",
        target=math.fsum(circuit.target for circuit in circuits) / n,
        n_layers=circuits[0].n_layers,
        provenance=circuits[0].provenance,
        settings={**circuits[0].settings, "prompts": n, "recurs in at least": least},
        modes={mode.id: mode.mode for mode in found.recurring(least) if mode.mode is not None},
    )


def _merged(circuit: Circuit, node: Node, mode: RecurringMode | None, longest: int) -> Node:
    """What a node becomes: the same wherever it recurs."""
    offset, source = from_end(circuit, node.position), from_end(circuit, node.source_position)
    place = None if offset is None else offset + longest
    fields: dict[str, Any] = {"layer": node.layer, "position": place, "share": 0.0}
    if node.kind == "logit":
        return Node("logit", "logit", "target", 0.0)
    if mode is not None:
        if mode.offset is None:
            fields["position"] = None
        label = f"L{mode.layer} mode in {mode.prompts} prompts"
        return Node(mode.id, "mode", label, index=mode.index, **fields)
    if node.kind == "mode":
        return Node(f"L{node.layer}.{offset}.modes", "supernode", "modes of few prompts", **fields)
    if node.kind == "token":
        return Node(f"E.{offset}", "token", f"position {offset}", **fields)
    if node.kind == "head":
        sources = {"source_position": None if source is None else source + longest}
        id = f"L{node.layer}.{offset}.h{node.index}.{source}"
        return Node(id, "head", node.label, index=node.index, **sources, **fields)
    kind = node.id.replace(f".{node.position}", "") if node.position is not None else node.id
    return Node(f"{kind}@{offset}", node.kind, node.label, index=node.index, **fields)


def _height(node: Node) -> float:
    """Sources, then layer by layer heads and what MLPs are taken apart into, the target last."""
    if node.kind == "logit":
        return math.inf
    if node.layer is None or node.kind not in ("head", "mode", "supernode"):
        return -1.0
    return 2 * node.layer + (node.kind != "head")


def _token(circuits: Sequence[Circuit], offset: int) -> str:
    """The token at a position from the end, where all prompts have the same; else a dot."""
    found = {c.tokens[offset] for c in circuits if len(c.tokens) >= -offset}
    return found.pop() if len(found) == 1 else "·"
