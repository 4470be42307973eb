"""The circuit as a value: what it refuses, and the sums that it reports."""

import math
from typing import Any

import pytest

from tl_bilinear.circuits import Circuit, Edge, Node
from tl_bilinear.hosts.provenance import Provenance

PROVENANCE = Provenance("m", "0" * 12, "HookedTransformer", "v", ("attention patterns",), "none")


def small_circuit(**changes) -> Circuit:
    nodes = (
        Node("E.0", "token", "Once", 1.5, position=0, index=7),
        Node("rest.0.0", "remainder", "other modes", -0.25, layer=0, position=0),
        Node("L0.m0.0", "mode", "λ=+2", 1.5, layer=0, position=0, index=0),
        Node("logit", "logit", "upon", 1.25, position=0),
    )
    edges = (
        Edge("E.0", "L0.m0.0", 1.5),
        Edge("L0.m0.0", "logit", 1.5),
        Edge("rest.0.0", "logit", -0.25),
    )
    fields: dict[str, Any] = dict(
        nodes=nodes,
        edges=edges,
        tokens=("Once",),
        target_label="upon",
        target=1.25,
        n_layers=1,
        provenance=PROVENANCE,
    )
    return Circuit(**(fields | changes))


def test_sums():
    circuit = small_circuit()
    assert circuit.discrepancy == 0
    assert circuit.remainder == -0.25
    assert circuit.kept_share == pytest.approx(1.5 / 1.75)
    assert circuit.completeness == pytest.approx(0.8)
    assert [node.id for node in circuit.top(5)] == ["L0.m0.0"]
    assert circuit.node("E.0").index == 7
    assert math.isnan(small_circuit(target=0.0).completeness)


def test_a_wrong_target_is_seen():
    assert small_circuit(target=2.0).discrepancy == 0.75


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges": (Edge("E.0", "nowhere", 1.0),)}, "loose end"),
        ({"edges": (Edge("logit", "E.0", 1.0),)}, "backward"),
        ({"nodes": (Node("a", "logit", "x", 1.0),) * 2, "edges": ()}, "occur twice"),
        ({"nodes": (Node("a", "token", "x", 1.0),), "edges": ()}, "of kind 'logit'"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=message):
        small_circuit(**changes)


def test_a_node_is_checked():
    with pytest.raises(ValueError, match="finite"):
        Node("a", "token", "x", float("nan"))
    with pytest.raises(KeyError, match="no node 'b'"):
        small_circuit().node("b")
