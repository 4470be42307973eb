"""Circuits written down: our JSON without loss, GraphML, Graphviz, Mermaid."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_circuits import HOSTILE, circuits, random_circuit
from test_circuit import small_circuit

from tl_bilinear.circuits import Circuit, Edge, Node

pytestmark = pytest.mark.one_major(3)

TEXTS = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=8))


def labelled(text: str) -> Circuit:
    """A small circuit whose every text is this one."""
    circuit = small_circuit()
    nodes = [replace(n, label=text, details={"tokens": [text]}) for n in circuit.nodes]
    return replace(circuit, nodes=tuple(nodes), tokens=(text,), target_label=text)


# ---- our own JSON -------------------------------------------------------------------------


@settings(max_examples=20)
@given(circuits())
def test_json_without_loss(circuit):
    again = Circuit.from_json(circuit.to_json())
    assert again == circuit
    assert again.to_json() == circuit.to_json()


@given(st.floats(allow_nan=False, allow_infinity=False), TEXTS)
def test_every_float_and_text_comes_back(number, text):
    circuit = labelled(text)
    first = replace(circuit.nodes[0], share=number, details={"number": number, "text": text})
    circuit = replace(circuit, nodes=(first, *circuit.nodes[1:]), target=number)
    again = Circuit.from_json(circuit.to_json())
    assert again == circuit
    assert str(again.target) == str(number)  # the sign of zero as well


def test_what_json_lacks_comes_back():
    circuit = small_circuit(
        target=float("nan"), settings={"inf": float("-inf"), "deep": [{"nan": float("nan")}, None]}
    )
    assert "NaN" not in circuit.to_json()
    again = Circuit.from_json(circuit.to_json())
    assert str(again.target) == "nan"
    assert str(again.settings) == "{'inf': -inf, 'deep': [{'nan': nan}, None]}"


def test_files(tmp_path: Path):
    circuit = random_circuit(1, tokens=HOSTILE)
    path = tmp_path / "circuit.json"
    path.write_text("an older file")
    circuit.save(path)
    assert Circuit.load(path) == circuit
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        Circuit.load(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError):
        circuit.save(tmp_path / "no" / "folder.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=2), "version 2 of the circuit format, and version 1 is read"),
        (lambda c: c.pop("version"), "version None"),
        (lambda c: c.update(format="graph"), "is no circuit"),
        (lambda c: c.pop("edges"), "damaged circuit: it lacks 'edges'"),
        (lambda c: c["edges"].append(["E.0", "logit"]), "damaged circuit"),
        (lambda c: c["edges"].append(["E.0", "nowhere", 1.0]), "loose end"),
        (lambda c: c["edges"].append(["E.0", "logit", "1"]), "a share is a number"),
        (lambda c: c["nodes"][0].update(color="red"), "color"),
        (lambda c: c["nodes"][0].pop("share"), "share"),
        (lambda c: c["nodes"][0].update(kind="star"), "is a 'star'"),
        (lambda c: c["nodes"].pop(), "damaged circuit"),
        (lambda c: c.update(nodes=3), "damaged circuit"),
        (lambda c: c["provenance"].pop("host"), "damaged circuit"),
    ],
)
def test_damaged_json_is_refused(change, message, unchecked, tmp_path: Path):
    content = json.loads(small_circuit().to_json())
    change(content)
    path = tmp_path / "circuit.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        Circuit.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"format": 1, "format": 1}', "[" * 10**5])
def test_no_json_is_refused(text):
    with pytest.raises(ValueError, match="this text is no"):
        Circuit.from_json(text)


def test_what_json_cannot_hold_is_refused():
    import torch

    for value in (torch.ones(2), {1: 2}, {"$float": "x"}, {1, 2}):
        circuit = small_circuit()
        nodes = (replace(circuit.nodes[0], details={"x": value}), *circuit.nodes[1:])
        with pytest.raises(ValueError, match="node 'E.0'"):
            replace(circuit, nodes=nodes).to_json()


# ---- networkx -----------------------------------------------------------------------------


@settings(max_examples=20)
@given(circuits())
def test_networkx_has_every_flow(circuit):
    import networkx

    graph = circuit.to_networkx()
    assert networkx.is_directed_acyclic_graph(graph)
    assert len(graph) == len(circuit.nodes)
    for node in circuit.nodes:
        if node not in circuit.sources and node.kind != "logit":
            into = sum(share for *_, share in graph.in_edges(node.id, data="share"))
            assert into == pytest.approx(node.share, abs=1e-9)


def test_parallel_edges_are_summed():
    circuit = small_circuit()
    circuit = replace(circuit, edges=(*circuit.edges, Edge("E.0", "L0.m0.0", 0.5)))
    assert circuit.to_networkx().edges["E.0", "L0.m0.0"] == {"share": 2.0, "weight": 2.0}


@given(TEXTS)
def test_graphml_comes_back(text):
    import io

    import networkx

    graph = labelled(text).to_networkx()
    buffer = io.BytesIO()
    networkx.write_graphml(graph, buffer)
    again = networkx.read_graphml(io.BytesIO(buffer.getvalue()))
    assert dict(again.nodes(data=True)) == dict(graph.nodes(data=True))
    assert {e[:2]: e[2] for e in again.edges(data=True)} == {
        e[:2]: e[2] for e in graph.edges(data=True)
    }
    assert again.graph["target_label"] == graph.graph["target_label"]
    assert json.loads(again.graph["tokens"]) == [text]


def test_characters_that_xml_lacks():
    from tl_bilinear.circuits.graph import xml_text

    assert xml_text("a\x00\r\n\t\ud83d\ufffe👩") == "a⟨U+0000⟩⟨U+000D⟩\n\t⟨U+D83D⟩⟨U+FFFE⟩👩"


# ---- Graphviz and Mermaid -----------------------------------------------------------------


def dot_strings(text: str) -> list[str]:
    """The quoted strings of DOT as its lexer ends them, and nothing else that holds a quote."""
    found = re.findall(r'"((?:[^"\\]|\\.)*)"', text)
    assert '"' not in re.sub(r'"(?:[^"\\]|\\.)*"', "", text)
    return found


def dot_text(escaped: str) -> str:
    """What Graphviz shows for a quoted string: escapes and entities undone."""
    import html

    plain = re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], escaped)
    return html.unescape(plain)


@given(TEXTS)
def test_dot_escapes(text):
    from tl_bilinear.characters import visible
    from tl_bilinear.circuits.diagram_text import dot_string

    (string,) = dot_strings(dot_string(text))
    assert dot_text(string) == visible(text)
    strings = dot_strings(labelled(text).to_dot())
    assert any(dot_text(s).startswith(f"“{visible(text)}”\n") for s in strings)


def test_dot_is_one_statement_per_line():
    circuit = random_circuit(2, tokens=HOSTILE, n_inner=20)
    text = circuit.to_dot()
    assert text.startswith("digraph circuit {\n") and text.endswith("}\n")
    assert text.count(" -> ") == len(circuit.edges)
    outside = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
    assert outside.isascii() and outside.replace("\n", "").isprintable()
    assert outside.count("{") == outside.count("}") == 2


def mermaid_label(label: str) -> str:
    """What Mermaid shows: its entities undone."""
    return re.sub(r"#(\d+);", lambda m: chr(int(m[1])), label)


@given(TEXTS)
def test_mermaid_escapes(text):
    from tl_bilinear.characters import visible

    lines = labelled(text).to_mermaid().splitlines()
    assert lines[0] == "flowchart BT"
    pattern = re.compile(r'  n\d+\W{1,2}"([^"]*)"\W{1,2}')
    labels = [found[1] for line in lines[1:5] if (found := pattern.fullmatch(line))]
    assert len(labels) == 4
    for label in labels:
        first, *_ = label.split("<br/>")
        assert not re.search(r'["`$%<>&\\*_~\[\]{}()|]', first)
        assert re.sub(r"#\d+;", "", first).count("#") == 0
    assert mermaid_label(labels[0].split("<br/>")[0]) == f"“{visible(text)}”"


def test_mermaid_colours_every_link():
    circuit = random_circuit(2, tokens=HOSTILE, n_inner=20)
    text = circuit.to_mermaid()
    assert text.count("linkStyle") == len(circuit.edges)
    negative = [i for i, edge in enumerate(circuit.edges) if edge.share < 0]
    positive = next(i for i, e in enumerate(circuit.edges) if e.share > 0 and "rem" not in e.source)
    assert negative and f"linkStyle {positive} stroke:#0072b2" in text


def test_a_mode_is_named_by_its_label():
    node = Node("a", "mode", "his · her", 1.0, layer=2, position=3)
    circuit = small_circuit()
    circuit = replace(circuit, nodes=(node, *circuit.nodes))
    assert "his · her\\nL2 position 3\\n+1" in circuit.to_dot()
    assert "his · her<br/>L2 position 3<br/>" in circuit.to_mermaid().replace("#43;", "+")
