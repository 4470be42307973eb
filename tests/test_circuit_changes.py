"""Pruned and merged circuits: flows conserved, sums closed, nothing claimed that was not kept."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_circuits import circuits, random_circuit
from test_circuit import small_circuit

from tl_bilinear.circuits import Circuit, Edge, Node

pytestmark = pytest.mark.one_major(3)


def leaks(circuit) -> list[str]:
    """Nodes whose inflow or outflow is not their share."""
    found = []
    for node in circuit.nodes:
        into = [edge.share for edge in circuit.edges if edge.target == node.id]
        out = [edge.share for edge in circuit.edges if edge.source == node.id]
        for flows, exempt in ((into, node in circuit.sources), (out, node.kind == "logit")):
            scale = 1e-9 * (1 + math.fsum(map(abs, flows)))
            if not exempt and abs(math.fsum(flows) - node.share) > scale:
                found.append(node.id)
    return found


def assert_sound(circuit) -> None:
    assert leaks(circuit) == []
    scale = math.fsum(abs(node.share) for node in circuit.sources)
    assert abs(circuit.discrepancy) <= 1e-9 * (1 + scale)


def test_a_leak_is_found():
    circuit = random_circuit(0)
    assert leaks(circuit) == []
    first = replace(circuit.edges[0], share=circuit.edges[0].share + 1)
    assert len(leaks(replace(circuit, edges=(first, *circuit.edges[1:])))) >= 1


@settings(max_examples=20)
@given(circuits(), st.integers(0, 12))
def test_pruning_conserves_flows(circuit, n):
    assert_sound(circuit)
    small = circuit.prune(max_nodes=n)
    assert_sound(small)
    named = [node for node in small.nodes if node.kind not in ("logit", "remainder")]
    assert len(named) <= n
    if len(circuit.nodes) <= n:
        assert len(small.nodes) == len(circuit.nodes)
    # Everything that stays reaches the target.
    assert {node.id for node in small.nodes if node.kind != "logit"} == {
        edge.source for edge in small.edges
    }
    assert_sound(small.prune(max_nodes=n // 2))


@settings(max_examples=20)
@given(circuits(), st.floats(0, 1))
def test_pruning_to_a_kept_share(circuit, part):
    whole = circuit.prune(max_nodes=len(circuit.nodes))
    kept = part * whole.kept_share
    small = circuit.prune(kept=kept)
    assert small.kept_share >= kept * (1 - 1e-12)
    assert len(small.nodes) <= len(whole.nodes) + len(circuit.nodes)
    assert_sound(small)


def test_the_smallest_prefix_is_taken():
    circuit = random_circuit(3, n_inner=20)
    small = circuit.prune(kept=0.6)
    n = len([node for node in small.nodes if node.kind not in ("logit", "remainder")])
    assert n > 0 and circuit.prune(max_nodes=n - 1).kept_share < 0.6


def test_by_hand():
    """A node cut from between: its share is a remainder, its token loses what went through it."""
    circuit = small_circuit()
    big = Node("L0.m1.0", "mode", "λ=-1", -0.5, layer=0, position=0, index=1)
    nodes = [*circuit.nodes[:-1], big, replace(circuit.nodes[-1], share=0.75)]
    nodes[0] = replace(nodes[0], share=1.0)
    edges = (*circuit.edges, Edge("E.0", "L0.m1.0", -0.5), Edge("L0.m1.0", "logit", -0.5))
    circuit = replace(circuit, nodes=tuple(nodes), edges=edges, target=0.75)
    small = circuit.prune(max_nodes=2)
    assert [(node.id, node.share) for node in small.nodes] == [
        ("pruned−.L0.P0", -0.5),
        ("E.0", 1.5),
        ("rest.0.0", -0.25),
        ("L0.m0.0", 1.5),
        ("logit", 0.75),
    ]
    assert small.remainder == -0.75 and small.kept_share == pytest.approx(1.5 / 2.25)
    assert small.node("pruned−.L0.P0").details["pruned"] == ["L0.m1.0"]
    nothing = circuit.prune(max_nodes=0)
    assert nothing.kept_share == 0 and nothing.remainder == 0.75


def test_what_does_not_close_is_not_mended():
    circuit = random_circuit(3, n_inner=20)
    wrong = replace(circuit, target=circuit.target + 0.75)
    for n in (0, 3, 99):
        assert wrong.prune(max_nodes=n).discrepancy == pytest.approx(0.75)
    inner = next(n for n in circuit.nodes if n not in circuit.sources and n.kind != "logit")
    number = next(i for i, edge in enumerate(circuit.edges) if edge.target == inner.id)
    edges = list(circuit.edges)
    edges[number] = replace(edges[number], share=edges[number].share + 0.5)
    leaky = replace(circuit, edges=tuple(edges))
    assert leaks(leaky) and leaks(leaky.prune(max_nodes=99)) and not leaks(circuit)


def test_cancelling_flows_do_not_count_as_kept():
    """+3 and −3 pruned at one place are two remainders, not one of zero."""
    circuit = small_circuit()
    pair = [
        Node(f"L0.m{i}.0", "mode", "", share, layer=0, position=0, index=i)
        for i, share in ((1, 3.0), (2, -3.0))
    ]
    token = Node("E.1", "token", "x", 0.0, position=0, index=9)
    nodes = (token, *circuit.nodes[:-1], *pair, circuit.nodes[-1])
    edges = [*circuit.edges]
    for node in pair:
        edges += [Edge("E.1", node.id, node.share), Edge(node.id, "logit", node.share)]
    circuit = replace(circuit, nodes=nodes, edges=tuple(edges))
    small = circuit.prune(max_nodes=0)
    assert small.kept_share == 0
    assert small.prune(max_nodes=0).kept_share == 0
    assert math.fsum(abs(node.share) for node in small.sources) == 0.25 + 1.5 + 3 + 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"max_nodes": 3, "kept": 0.5}, "exactly one"),
        ({"max_nodes": -1}, "negative"),
        ({"kept": 1.5}, "between 0 and 1"),
        ({"kept": float("nan")}, "between 0 and 1"),
        ({"kept": 1.0}, "larger budget"),
    ],
)
def test_prune_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_circuit().prune(**arguments)


@settings(max_examples=20)
@given(circuits(), st.data())
def test_merging_conserves_flows(circuit, data):
    sources = [node for node in circuit.sources if node.kind != "remainder"]
    inner = [n for n in circuit.nodes if n not in circuit.sources and n.kind != "logit"]
    for name, pool in (("sources", sources), ("inner", inner)):
        if pool:
            ids = [node.id for node in pool]
            members = data.draw(st.lists(st.sampled_from(ids), min_size=1, unique=True))
            try:
                merged = circuit.merge({name: members})
            except ValueError as error:
                assert "cycle" in str(error) and name == "inner" and between(circuit, members)
                continue
            assert not between(circuit, members)
            assert_sound(merged)
            assert merged.nodes[-1].kind == "logit"
            assert len(merged.nodes) == len(circuit.nodes) - len(members) + 1
            assert merged.node(name).details["members"] == members
            inside = {edge for edge in circuit.edges if {edge.source, edge.target} <= set(members)}
            flow = math.fsum(edge.share for edge in circuit.edges if edge not in inside)
            assert math.fsum(edge.share for edge in merged.edges) == pytest.approx(flow, abs=1e-9)


def between(circuit, members) -> bool:
    """Whether a path leaves the members and comes back."""
    inside, outside = set(members), set()
    for node in circuit.nodes:
        before = {edge.source for edge in circuit.edges if edge.target == node.id}
        if node.id in inside:
            if before & outside:
                return True
        elif before & (inside | outside):
            outside.add(node.id)
    return False


def test_merged_remainders_stay_remainders():
    circuit = random_circuit(5, n_inner=20)
    rests = [node.id for node in circuit.nodes if node.kind == "remainder"]
    assert len(rests) > 1
    merged = circuit.merge({"all rests": rests})
    assert merged.node("all rests").kind == "remainder"
    assert merged.remainder == pytest.approx(circuit.remainder)


def test_merge_refuses():
    circuit = random_circuit(5, n_inner=20)
    rest = next(node.id for node in circuit.nodes if node.kind == "remainder")
    mode = next(n.id for n in circuit.nodes if n.kind == "mode")
    for groups, message in [
        ({"g": ["nobody"]}, "not there"),
        ({"g": ["logit"]}, "target"),
        ({"g": [mode], "h": [mode]}, "twice"),
        ({"g": [mode, mode]}, "twice"),
        ({"g": []}, "give a name and its nodes"),
        ({"": [mode]}, "give a name and its nodes"),
        ({"g": [rest, mode]}, "must stay apart"),
        ({rest: [mode]}, "has the id of a node"),
    ]:
        with pytest.raises(ValueError, match=message):
            circuit.merge(groups)
    token = next(n.id for n in circuit.nodes if n.kind == "token")
    entered = next(e.target for e in circuit.edges if e.source != token and e.target == mode)
    with pytest.raises(ValueError, match="leave its sources out"):
        circuit.merge({"g": [token, entered]})


def test_a_cycle_is_refused_and_named():
    base = random_circuit(0)
    names = ["E.0", "a", "b", "c", "logit"]
    nodes = (
        Node("E.0", "token", "E.0", 1.0),
        *(Node(name, "mode", name, 1.0, layer=0) for name in "abc"),
        Node("logit", "logit", "logit", 1.0),
    )
    edges = tuple(Edge(a, b, 1.0) for a, b in zip(names, names[1:], strict=False))
    chain = Circuit(nodes, edges, ("x",), "t", 1.0, 1, base.provenance)
    with pytest.raises(ValueError, match=r"cycle through \['g'\]"):
        chain.merge({"g": ["a", "c"]})
    assert [n.id for n in chain.merge({"g": ["a", "b", "c"]}).nodes] == ["E.0", "g", "logit"]
