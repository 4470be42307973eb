"""A circuit: named parts of a model, and how much of a target flows between them.

Shares flow upward, from tokens and biases to the target, in the target's unit (logits). The
flow is conserved: what enters a node is its share, and what leaves it as well. A remainder is
where tracing stopped: its share enters the circuit from outside, unexplained. So the shares of
all nodes that nothing enters (`sources`) sum to the target.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from tl_bilinear.decompositions import Mode
from tl_bilinear.hosts.provenance import Provenance

if TYPE_CHECKING:
    import networkx

NodeKind = Literal[
    "token",  # an embedding; index: the token's id
    "bias",  # a constant of the weights
    "head",  # one head's edge from `source_position` to `position`; index: the head
    "mode",  # an eigenmode (or another basis' element) of one MLP at one position; index: its rank
    "join",  # an unsplit pair term of an MLP: two nodes enter it, one product leaves
    "change",  # of a contrast: a pattern, a denominator or a gate that differs between two runs
    "remainder",  # everything that was not followed at one place
    "supernode",  # several nodes merged
    "logit",  # the target
]


@dataclass(frozen=True)
class Node:
    """One part of a model, at one position.

    Raises:
        ValueError: a kind that does not exist, or a share that is not finite.
    """

    id: str
    """Unique in its circuit."""
    kind: NodeKind
    label: str
    """For people; a token's text is exact."""
    share: float
    """Of the target, signed, that flows through this node, in logits."""
    layer: int | None = None
    """None for tokens, and for the target."""
    position: int | None = None
    source_position: int | None = None
    index: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    """What a reader asks next (eigenvalue, activation, top tokens): strings, numbers, lists."""

    def __post_init__(self):
        if self.kind not in get_args(NodeKind):
            raise ValueError(
                f"node {self.id!r} is a {self.kind!r}: give one of {get_args(NodeKind)}"
            )
        if not math.isfinite(self.share):
            raise ValueError(f"node {self.id!r} has the share {self.share}: give a finite number")


@dataclass(frozen=True)
class Edge:
    """A signed flow from one node to another, in logits."""

    source: str
    target: str
    share: float


@dataclass(frozen=True)
class Circuit:
    """Nodes and the flows between them, from tokens to one target.

    Raises:
        ValueError: two nodes of one id, an edge to a node that is not there, or no logit node.
    """

    nodes: tuple[Node, ...]
    """Sources first, the target last: every edge goes forward."""
    edges: tuple[Edge, ...]
    tokens: tuple[str, ...]
    """The prompt's, one per position."""
    target_label: str
    target: float
    """The model's own value, from its logits; in a contrast the difference of two."""
    n_layers: int
    provenance: Provenance
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How it was traced: split, basis, budget; strings, numbers, lists."""
    modes: Mapping[str, Mode] = field(default_factory=dict, compare=False, repr=False)
    """The eigenmodes behind nodes of kind "mode", by id, ready for `ablate`; a circuit that was
    read from a file has none."""

    def __post_init__(self):
        twice = [name for name, n in Counter(node.id for node in self.nodes).items() if n > 1]
        if twice:
            raise ValueError(f"these nodes occur twice: {twice[:5]}")
        place = {node.id: i for i, node in enumerate(self.nodes)}
        for edge in self.edges:
            if edge.source not in place or edge.target not in place:
                raise ValueError(f"the edge {edge.source!r} -> {edge.target!r} has a loose end")
            if place[edge.source] >= place[edge.target]:
                raise ValueError(
                    f"the edge {edge.source!r} -> {edge.target!r} goes backward: order the nodes"
                )
        if not any(node.kind == "logit" for node in self.nodes):
            raise ValueError("a circuit needs a node of kind 'logit', its target")

    @cached_property
    def _by_id(self) -> dict[str, Node]:
        return {node.id: node for node in self.nodes}

    def node(self, id: str) -> Node:
        """The node of that id.

        Raises:
            KeyError: there is none.
        """
        if id not in self._by_id:
            raise KeyError(f"no node {id!r}: see [node.id for node in circuit.nodes]")
        return self._by_id[id]

    @cached_property
    def sources(self) -> tuple[Node, ...]:
        """The nodes that nothing enters: tokens, biases, changes, remainders."""
        entered = {edge.target for edge in self.edges}
        return tuple(n for n in self.nodes if n.id not in entered and n.kind != "logit")

    @cached_property
    def edges_by_size(self) -> tuple[Edge, ...]:
        """Largest |share| first."""
        return tuple(sorted(self.edges, key=lambda edge: -abs(edge.share)))

    @property
    def remainder(self) -> float:
        """The signed part of the target that was not followed to its sources."""
        return math.fsum(node.share for node in self.sources if node.kind == "remainder")

    @property
    def discrepancy(self) -> float:
        """Target minus the shares of all sources: rounding, or something is wrong."""
        return self.target - math.fsum(node.share for node in self.sources)

    @property
    def kept_share(self) -> float:
        """The part of the sum of |shares| over the sources that is no remainder, in [0, 1]."""
        total = math.fsum(abs(node.share) for node in self.sources)
        kept = math.fsum(abs(n.share) for n in self.sources if n.kind != "remainder")
        return kept / total if total else 1.0

    @property
    def completeness(self) -> float:
        """1 - |target - kept| / |target|, kept being what flows from sources other than
        remainders; negative where the remainder exceeds the target, nan at a target of zero."""
        return 1 - abs(self.remainder) / abs(self.target) if self.target else math.nan

    def top(self, k: int) -> tuple[Node, ...]:
        """The k nodes of largest |share|, tokens, target and remainders apart."""
        inner = [n for n in self.nodes if n.kind not in ("token", "logit", "remainder")]
        return tuple(sorted(inner, key=lambda node: -abs(node.share))[:k])

    def prune(self, *, max_nodes: int | None = None, kept: float | None = None) -> "Circuit":
        """The same target from its most important nodes; the rest goes to remainder nodes.

        Nodes are taken from the target downward, always the one of largest |share| among those
        that flow into something taken. What flowed through the others enters from a remainder
        of its layer, position and sign, and the nodes before them lose what flowed only there,
        each of their inflows by its part. Flows stay conserved and shares close. A convention,
        as the split is: tracing again with a smaller budget names other modes.

        Args:
            max_nodes: how many nodes stay, targets and remainders not counted.
            kept: take nodes until `kept_share` reaches this, in [0, 1].

        Raises:
            ValueError: not exactly one of the two, out of range, or `kept` above what the whole
                circuit keeps.
        """
        from tl_bilinear.circuits.pruning import prune

        return prune(self, max_nodes=max_nodes, kept=kept)

    def merge(self, groups: Mapping[str, Sequence[str]]) -> "Circuit":
        """Each group of nodes as one supernode (of remainders: as one remainder).

        Flows inside a group vanish, flows in and out of it add up.

        Args:
            groups: {"name": [ids]}; the name becomes id and label.

        Raises:
            ValueError: an unknown id, one in two groups, a target, a name that is taken, sources
                beside nodes that flows enter, remainders beside others, or a cycle.
        """
        from tl_bilinear.circuits.merging import merge

        return merge(self, groups)

    def to_json(self) -> str:
        """Lossless JSON of our own, versioned: floats come back bit for bit, tuples as lists.

        Raises:
            ValueError: details or settings that are no strings, numbers, lists or dictionaries.
        """
        from tl_bilinear.circuits.own_json import to_json

        return to_json(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Circuit":
        """The circuit that `to_json` wrote.

        Raises:
            ValueError: another format or version, or a damaged text.
        """
        from tl_bilinear.circuits.own_json import from_json

        return from_json(text)

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file, whole or not at all."""
        from tl_bilinear.circuits.own_json import save

        save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> "Circuit":
        """The circuit that `save` wrote.

        Raises:
            ValueError: as `from_json`.
            OSError: the file cannot be read.
        """
        from tl_bilinear.circuits.own_json import load

        return load(path)

    def to_attribution_graph(self, slug: str, scan: str | None = None) -> dict[str, Any]:
        """The JSON that circuit-tracer's viewer and Neuronpedia open, as a dictionary.

        Links weigh the flows, error nodes are the remainders, and pair terms stand beside them
        as `bilinear_interactions`. Write it with `json.dump`, or both files of circuit-tracer's
        viewer with `circuits.attribution_folder.add_to_folder`.

        Args:
            slug: the graph's name there.
            scan: the model's name there; by default the one in the provenance.

        Raises:
            ValueError: a slug or scan of other characters than letters, digits, _, - and dot.
        """
        from tl_bilinear.circuits.attribution_graph import to_attribution_graph

        return to_attribution_graph(self, slug, scan)

    def to_networkx(self) -> "networkx.DiGraph":
        """A networkx DiGraph, parallel edges summed, whose attributes GraphML can hold.

        Nodes have kind, label, share, layer, position, source_position, index (where they
        apply) and details (as JSON); edges share and weight = |share|. Characters that XML
        cannot hold are written as ⟨U+0000⟩.
        """
        from tl_bilinear.circuits.graph import to_networkx

        return to_networkx(self)

    def to_dot(self) -> str:
        """The circuit for Graphviz: `dot -Tsvg`."""
        from tl_bilinear.circuits.diagram_text import to_dot

        return to_dot(self)

    def to_mermaid(self) -> str:
        """The circuit for Mermaid, as README pages draw it."""
        from tl_bilinear.circuits.diagram_text import to_mermaid

        return to_mermaid(self)


def summed(edges: Iterable[Edge], names: Mapping[str, str] | None = None) -> list[Edge]:
    """Edges of the same ends as one, the ends renamed first."""
    names = names or {}
    flows: dict[tuple[str, str], list[float]] = defaultdict(list)
    for edge in edges:
        ends = names.get(edge.source, edge.source), names.get(edge.target, edge.target)
        flows[ends].append(edge.share)
    return [Edge(source, target, math.fsum(flow)) for (source, target), flow in flows.items()]
