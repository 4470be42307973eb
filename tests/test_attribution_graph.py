"""The JSON for circuit-tracer's viewer and Neuronpedia: its schema, and every known trap."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from graph_viewer import SCHEMA, Viewer, complaints
from hypothesis import given, settings
from random_circuits import HOSTILE, circuits, random_circuit
from test_circuit import PROVENANCE, small_circuit

from tl_bilinear.circuits import Circuit, Edge, Node
from tl_bilinear.circuits.attribution_folder import add_to_folder
from tl_bilinear.circuits.attribution_graph import cantor

pytestmark = pytest.mark.one_major(3)


@settings(max_examples=20)
@given(circuits())
def test_every_circuit_fits_the_schema_and_both_viewers(circuit):
    graph = circuit.to_attribution_graph("a-graph")
    assert json.loads(json.dumps(graph, allow_nan=False)) == graph
    assert complaints(graph, SCHEMA) == []
    assert Viewer(graph).faults() == []


@settings(max_examples=20)
@given(circuits())
def test_links_carry_every_flow(circuit):
    graph = circuit.to_attribution_graph("a-graph")
    total = math.fsum(edge.share for edge in circuit.edges)
    assert math.fsum(link["weight"] for link in graph["links"]) == pytest.approx(total, abs=1e-9)
    errors = [n for n in graph["nodes"] if n["feature_type"] == "mlp reconstruction error"]
    assert math.fsum(n["share"] for n in errors) == pytest.approx(circuit.remainder, abs=1e-9)
    into = [link for link in graph["links"] if link["target"].split("_")[0] == top_row(graph)]
    assert math.fsum(link["weight"] for link in into) == pytest.approx(circuit.target)


def top_row(graph: dict[str, Any]) -> str:
    return next(n["layer"] for n in graph["nodes"] if n["feature_type"] == "logit")


def of(graph: dict[str, Any], kind: str) -> dict[str, Any]:
    """The first node of a type."""
    return next(node for node in graph["nodes"] if node["feature_type"] == kind)


def set_clerp(graph: dict[str, Any]) -> None:
    of(graph, "logit")["clerp"] = 'Output "x"'


def one_token(graph: dict[str, Any]) -> None:
    graph["metadata"]["prompt_tokens"] = ["x"]


def all_in_row_0(graph: dict[str, Any]) -> None:
    for node in graph["nodes"]:
        node["layer"] = node["layer"] if node["layer"] == "E" else "0"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (set_clerp, "ends the viewer"),
        (lambda g: of(g, "logit").update(clerp='Output "a "b" (p=1.000)'), "misread"),
        (lambda g: of(g, "logit").update(layer="1"), "_"),
        (all_in_row_0, "No layer found"),
        (lambda g: of(g, "mlp reconstruction error").update(layer="0"), "tokens' row"),
        (one_token, "is dropped"),
        (lambda g: g["nodes"].append(dict(g["nodes"][0])), "node_id"),
        (lambda g: g["nodes"].append(g["nodes"][0] | {"node_id": "E_5_0"}), "jsNodeId"),
        (lambda g: of(g, "cross layer transcoder").update(influence=1.001), "_"),
        (lambda g: of(g, "cross layer transcoder").update(feature=4), "wrong id"),
        (lambda g: of(g, "embedding").update(ctx_idx=9), "wrong id"),
        (lambda g: of(g, "embedding").update(clerp="other"), "other"),
        (lambda g: of(g, "cross layer transcoder").update(feature_type="bias"), "_"),
        (lambda g: g["links"].append({"source": "no", "target": "no", "weight": 1}), "no"),
        (lambda g: g["qParams"]["pinnedIds"].append("gone"), "gone"),
    ],
)
def test_a_trap_is_noticed(fault, words):
    graph = small_circuit().to_attribution_graph("a-graph")
    assert Viewer(graph).faults() == []
    fault(graph)
    try:
        assert any(words in found for found in Viewer(graph).faults())
    except IndexError:
        assert words == "wrong id"  # a position beyond the prompt ends the viewer itself


@pytest.mark.parametrize(
    "fault",
    [
        lambda g: g.pop("qParams"),
        lambda g: g["metadata"].pop("prompt"),
        lambda g: g["metadata"].update(slug="a b"),
        lambda g: g["nodes"][0].pop("clerp"),
        lambda g: g["nodes"][0].update(layer=0),
        lambda g: g["nodes"][0].update(feature="3"),
        lambda g: g["links"][0].update(weight=None),
        lambda g: g["metadata"].update(prompt_tokens=[1]),
    ],
)
def test_the_schema_can_fail(fault):
    graph = small_circuit().to_attribution_graph("a-graph")
    assert complaints(graph, SCHEMA) == []
    fault(graph)
    assert len(complaints(graph, SCHEMA)) == 1


def test_ids_and_rows():
    """Tokens E_{vocabulary}_{ctx}; heads of layer l in row 2l + 1, its MLP in row 2l + 2."""
    head = Node("h", "head", "L0H3", 1.5, layer=0, position=0, source_position=0, index=3)
    circuit = small_circuit()
    nodes = (*circuit.nodes[:2], head, *circuit.nodes[2:])
    edges = (
        Edge("E.0", "h", 1.5),
        Edge("h", "L0.m0.0", 1.5),
        *circuit.edges[1:],
    )
    circuit = replace(circuit, nodes=nodes, edges=edges, tokens=("Once", "x"))
    graph = circuit.to_attribution_graph("a-graph")
    assert [node["node_id"] for node in graph["nodes"]] == [
        "E_7_0",
        "2_-1_0",
        f"1_{cantor(0, 3)}_0",
        "2_0_0",
        "3_0_0",
    ]
    assert [n["feature"] for n in graph["nodes"]] == [7, -1, cantor(1, cantor(0, 3)), 3, 0]
    assert graph["nodes"][-1]["clerp"] == 'Output "upon" (p=1.000)'
    assert graph["metadata"]["schema_version"] == 1
    assert graph["links"][0] == {"source": "E_7_0", "target": "1_9_0", "weight": 1.5}


def test_a_probability_is_written_where_one_is_known():
    circuit = small_circuit()
    target = replace(circuit.nodes[-1], label='a "(p=9)', details={"probability": 0.25})
    graph = replace(circuit, nodes=(*circuit.nodes[:-1], target)).to_attribution_graph("g")
    assert of(graph, "logit")["clerp"] == 'Output "a ”(p =9)" (p=0.250)'
    assert of(graph, "logit")["token_prob"] == 0.25


def test_a_prompt_of_one_token_gets_an_empty_one_and_says_so():
    graph = small_circuit().to_attribution_graph("g")
    assert graph["metadata"]["prompt_tokens"] == ["Once", ""]
    assert graph["metadata"]["prompt"] == "Once"
    assert "no part of the prompt" in graph["metadata"]["info"]["description"]
    longer = small_circuit(tokens=("Once", "upon")).to_attribution_graph("g")
    assert longer["metadata"]["prompt_tokens"] == ["Once", "upon"]
    assert "no part of the prompt" not in longer["metadata"]["info"]["description"]


def test_direct_paths_alone_can_be_opened():
    nodes = (
        Node("E", "token", "Once", 2.0, position=0, index=7),
        Node("logit", "logit", "upon", 2.0, position=0),
    )
    circuit = Circuit(nodes, (Edge("E", "logit", 2.0),), ("Once",), "upon", 2.0, 0, PROVENANCE)
    graph = circuit.to_attribution_graph("g")
    assert Viewer(graph).faults() == [] and complaints(graph, SCHEMA) == []
    assert of(graph, "mlp reconstruction error")["share"] == 0


def test_remainders_of_a_place_are_one_error_node():
    circuit = small_circuit()
    second = Node("more", "remainder", "heads", 0.5, layer=0, position=0)
    circuit = replace(
        circuit,
        nodes=(second, *circuit.nodes),
        edges=(*circuit.edges, Edge("more", "logit", 0.5)),
        target=1.75,
    )
    graph = circuit.to_attribution_graph("g")
    error = of(graph, "mlp reconstruction error")
    assert error["share"] == 0.25 and error["clerp"] == "heads; other modes"
    weights = [k["weight"] for k in graph["links"] if k["source"] == error["node_id"]]
    assert weights == [0.25]


def test_influence_is_a_cumulative_fraction():
    circuit = random_circuit(1, n_inner=20)
    nodes = circuit.to_attribution_graph("g")["nodes"]
    inner = [n for n in nodes if n["influence"] is not None]
    assert {n["feature_type"] for n in nodes if n["influence"] is None} == {"embedding", "logit"}
    by_share = sorted(
        (n for n in inner if n["kind"] != "remainder"), key=lambda n: -abs(n["share"])
    )
    assert [n["influence"] for n in by_share] == sorted(n["influence"] for n in by_share)
    assert 0 < by_share[0]["influence"] < max(n["influence"] for n in inner) <= 1


def test_pair_terms_are_an_extra_key():
    for seed in range(20):
        circuit = random_circuit(seed, n_inner=20)
        joins = [node for node in circuit.nodes if node.kind == "join"]
        graph = circuit.to_attribution_graph("g")
        ids = {node["node_id"] for node in graph["nodes"]}
        assert len(graph["bilinear_interactions"]) == len(joins)
        for term, join in zip(graph["bilinear_interactions"], joins, strict=True):
            assert term["share"] == join.share
            assert len(term["factors"]) >= 1 and {*term["factors"], term["node"]} <= ids
        if joins:
            return
    raise AssertionError("no circuit with a join was drawn")


@pytest.mark.parametrize("slug", ["", "a b", "a/b", "../a", "é", "a\n"])
def test_a_slug_is_a_file_name(slug):
    with pytest.raises(ValueError, match="slug"):
        small_circuit().to_attribution_graph(slug)
    with pytest.raises(ValueError, match="scan"):
        small_circuit().to_attribution_graph("g", scan="a b")


def test_the_scan_is_the_model_in_allowed_characters():
    named = replace(PROVENANCE, model="my model/ü")
    graph = small_circuit(provenance=named).to_attribution_graph("g")
    assert graph["metadata"]["scan"] == "my-model-"


def test_the_folder_of_a_local_viewer(tmp_path: Path):
    circuit = random_circuit(0, tokens=HOSTILE)
    folder = tmp_path / "graphs"
    assert add_to_folder(circuit, folder, "one") == folder / "one.json"
    add_to_folder(circuit, folder, "two")
    add_to_folder(circuit, folder, "one")
    listed = json.loads((folder / "graph-metadata.json").read_text())["graphs"]
    assert [entry["slug"] for entry in listed] == ["two", "one"]
    graph = json.loads((folder / "one.json").read_text())
    assert graph == circuit.to_attribution_graph("one") and graph["metadata"] == listed[1]
    assert sorted(path.name for path in folder.iterdir()) == [
        "graph-metadata.json",
        "one.json",
        "two.json",
    ]


@pytest.mark.parametrize("text", ["", "[]", '{"graphs": 3}', '{"graphs": ["x"]}'])
def test_a_strange_index_is_left_alone(text, tmp_path: Path):
    index = tmp_path / "graph-metadata.json"
    index.write_text(text)
    with pytest.raises(ValueError, match="is no list of graphs"):
        add_to_folder(small_circuit(), tmp_path, "one")
    assert index.read_text() == text and list(tmp_path.iterdir()) == [index]
