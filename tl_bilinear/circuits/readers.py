"""Who reads the stream at each place, and the flows that were found so far.

Tracing goes down: at every height a reader is a node above with a direction of the stream at one
place. What a part of the stream is worth to it is its dot product with that direction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_bilinear.circuits.circuit import Edge, Node, NodeKind
from tl_bilinear.decompositions import Mode

LOGIT = "logit"


class Readers:
    """Directions per place. Merged, those of a place are one, and nobody asks whose they are."""

    def __init__(self, stream: Float[Tensor, "place d_model"], merged: bool):
        self.merged = merged
        self.names: list[list[str]] = [[] for _ in stream]
        self.directions: list[Float[Tensor, "reader d_model"]] = [stream[:0] for _ in stream]

    def add(
        self, place: int, names: Sequence[str], directions: Float[Tensor, "reader d_model"]
    ) -> None:
        """More readers of a place."""
        if not len(directions):
            return
        whole = torch.cat([self.directions[place], directions])
        if self.merged:
            self.names[place], whole = [LOGIT], whole.sum(0, keepdim=True)
        else:
            self.names[place] = [*self.names[place], *names]
        self.directions[place] = whole

    @property
    def active(self) -> list[int]:
        """The places that anybody reads."""
        return [place for place, names in enumerate(self.names) if names]


@dataclass
class Ledger:
    """Nodes and flows, as they are found from the target down."""

    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    edges: dict[tuple[str, str], float] = field(default_factory=dict)
    modes: dict[str, Mode] = field(default_factory=dict)
    inner: set[str] = field(default_factory=set)
    """The nodes that tracing goes on from."""
    chosen: int = 0
    """Modes, head edges and other elements: what a budget counts."""

    def node(
        self,
        id: str,
        kind: NodeKind,
        label: str,
        height: float,
        *,
        details: Mapping[str, Any] | None = None,
        **where: Any,
    ) -> None:
        """A node; said twice it stays what it was, details beside.

        Args:
            height: edges go from lower nodes to higher ones.
            where: layer, position and the like; of a change `others`, the id and label of the
                node that small ones of its kind become.
        """
        if id not in self.nodes:
            self.nodes[id] = {
                "kind": kind,
                "label": label,
                "height": height,
                "details": {},
                **where,
            }
            self.chosen += kind in ("mode", "head")
            if kind in ("mode", "head", "logit"):
                self.inner.add(id)
        self.nodes[id]["details"].update(details or {})

    def flow(self, source: str, targets: Sequence[str], shares: Float[Tensor, " reader"]) -> None:
        """What a node is worth to each of its readers; a target may occur twice."""
        for target, share in zip(targets, shares.tolist(), strict=True):
            if share:
                edge = (source, target)
                self.edges[edge] = self.edges.get(edge, 0.0) + share
                self.shares[source] = self.shares.get(source, 0.0) + share

    def gather(self, threshold: float) -> None:
        """Changes whose |share| is below the threshold become one node per layer and kind."""
        new: dict[str, str] = {}
        for id, node in list(self.nodes.items()):
            small = abs(self.shares.get(id, 0.0)) < threshold
            if node["kind"] == "change" and small and id not in self.inner:
                others, label = node["others"]
                new[id] = others
                self.node(others, "change", label, node["height"], layer=node["layer"])
                share = self.shares.pop(id, 0.0)
                self.shares[others] = self.shares.get(others, 0.0) + share
                del self.nodes[id]
        edges: dict[tuple[str, str], float] = {}
        for (source, target), share in self.edges.items():
            edge = (new.get(source, source), target)
            edges[edge] = edges.get(edge, 0.0) + share
        self.edges = edges

    def sums(self) -> tuple[float, float, float]:
        """(|shares| of sources that are no remainder, of remainders, signed remainder)."""
        kept = gone = signed = 0.0
        for id, share in self.shares.items():
            if self.nodes[id]["kind"] == "remainder":
                gone, signed = gone + abs(share), signed + share
            elif id not in self.inner:
                kept += abs(share)
        return kept, gone, signed

    def build(self, target: float) -> tuple[tuple[Node, ...], tuple[Edge, ...]]:
        """Nodes with a flow, lowest first, the target last; and the flows between them."""
        # Flows may cancel to a share of zero: the node is there all the same.
        ends = {end for edge in self.edges for end in edge}
        order = sorted(
            (id for id in self.nodes if id in ends and id != LOGIT),
            key=lambda id: self.nodes[id]["height"],
        )
        nodes = []
        for id in order:
            nodes.append(self._node(id, self.shares.get(id, 0.0)))
        nodes.append(self._node(LOGIT, target))
        edges = tuple(Edge(source, to, share) for (source, to), share in self.edges.items())
        return tuple(nodes), edges

    def _node(self, id: str, share: float) -> Node:
        fields = {k: v for k, v in self.nodes[id].items() if k not in ("height", "others")}
        return Node(id=id, share=share, **fields)


def reaches(shares: Float[Tensor, "*shape"], threshold: float) -> Bool[Tensor, "*shape"]:
    """Which shares become nodes: those that reach the threshold, and are not zero."""
    return (shares.abs() >= threshold) & (shares != 0)
