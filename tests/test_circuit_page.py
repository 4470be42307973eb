"""A circuit as a page: it works offline and by keyboard, and nothing that a token holds acts."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from random_circuits import HOSTILE, random_circuit
from test_circuit import small_circuit
from test_views import Elements, browse, network_references, scripts_of, without_scripts

from tl_bilinear.characters import visible
from tl_bilinear.circuits import Circuit
from tl_bilinear.views import circuit_page

pytestmark = pytest.mark.one_major(3)


def hostile_circuit() -> Circuit:
    circuit = random_circuit(7, n_inner=14, n_layers=2, tokens=HOSTILE, names=HOSTILE)
    nodes = [
        replace(node, label="</script><script>document.title='run'</script>")
        if node.kind == "mode"
        else node
        for node in circuit.nodes
    ]
    return replace(
        circuit,
        nodes=tuple(nodes),
        target_label="<img src=x onerror=\"document.title='run'\">",
        settings={"note": "<b>bold</b>"},
    )


def test_the_page_fetches_nothing_and_names_no_address():
    text = circuit_page(hostile_circuit())
    assert network_references(text) == []
    assert not re.search(r"https?:", text)
    assert "default-src 'none'" in text


def test_hostile_tokens_are_data():
    circuit = hostile_circuit()
    text = circuit_page(circuit)
    data, code = scripts_of(text)
    assert "<" not in data and "document.title" not in code
    found = json.loads(data)
    assert len(found["nodes"]) == len(circuit.nodes)
    assert [e["share"]["value"] for e in found["edges"]] == [e.share for e in circuit.edges_by_size]
    tags = {tag for tag, *_ in Elements(text).attributes}
    assert not tags & {"img", "b", "s", "iframe", "a"}
    body = without_scripts(text)
    assert body.count("document.title") == body.count("document.title=&#x27;run&#x27;")
    for token in HOSTILE:
        chip = html.escape(visible(token)).replace(" ", '<span class="space">␣</span>')
        assert f'<span class="token">{chip}</span>' in body
    assert "innerHTML" not in code


def test_every_node_can_be_reached_and_is_named():
    circuit = random_circuit(2, n_inner=20)
    text = without_scripts(circuit_page(circuit))
    drawn = [node for node in circuit.nodes if node.kind != "remainder"]
    groups = re.findall(r'<g class="node[^>]*>', text)
    assert len(groups) == len(drawn)
    assert all('tabindex="0" role="button"' in g and 'aria-label="' in g for g in groups)
    assert text.count('class="wire"') == sum(
        circuit.node(edge.source).kind != "remainder" for edge in circuit.edges
    )


def test_details_of_every_kind_are_kept():
    details = {
        "eigenvalue": -1.5,
        "note": "x",
        "spectrum": [1.0, -2],
        "top_tokens": ["a", "\n"],
        "examples": [["once", 0.5]],
        "odd": [[1, 2], {"a": 1}],
        "by_name": {"a": 1.0},
    }
    circuit = small_circuit()
    nodes = [replace(n, details=details) if n.kind == "mode" else n for n in circuit.nodes]
    data = json.loads(scripts_of(circuit_page(replace(circuit, nodes=tuple(nodes))))[0])
    node = next(node for node in data["nodes"] if "(mode" in node["title"])
    assert node["facts"][1:] == [["eigenvalue", "−1.5"], ["note", "x"]]
    assert node["details"][:3] == [
        ["spectrum", "numbers", [1.0, -2.0]],
        ["top tokens", "tokens", ["a", "↵"]],
        ["examples", "pairs", [["once", {"value": 0.5, "text": "+0.5000"}]]],
    ]
    assert [kind for _, kind, _ in node["details"][3:]] == ["text", "pairs"]
    assert data["rests"] == [
        "not followed: −0.2500 logits\nother modes (not followed, layer 0, position 0)"
    ]


ASK = """<script>setTimeout(() => {
const found = {wide: [document.documentElement.scrollWidth, innerWidth]};
const count = (name) => document.querySelectorAll(name).length;
const press = (element, key) => element.dispatchEvent(
  new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
const mode = document.querySelector(".node.mode");
press(mode, "Enter");
found.panel = document.getElementById("panel").innerText;
found.lit = count(".wire.lit");
found.bars = count(".bars > div");
found.before = count(".wire.gone");
slider.value = slider.max / 2;
slider.dispatchEvent(new Event("input"));
found.gone = count(".wire.gone");
const box = svg.getAttribute("viewBox");
press(picture, "+");
found.zoomed = svg.getAttribute("viewBox") !== box;
press(picture, "0");
const numbers = (text) => text.split(" ").map(Number).join();
found.back = numbers(svg.getAttribute("viewBox")) === numbers(box);
press(picture, "Escape");
found.chosen = count(".chosen");
const wire = document.querySelector(".hit[data-edge]");
wire.dispatchEvent(new PointerEvent("pointermove", {bubbles: true, clientX: 40, clientY: 40}));
found.tip = tip.hidden ? "" : tip.textContent;
const down = {bubbles: true, clientX: 40, clientY: 40, button: 0};
mode.dispatchEvent(new PointerEvent("pointerdown", down));
window.dispatchEvent(new PointerEvent("pointerup", down));
found.clicked = count(".chosen");
document.title = "found " + JSON.stringify(found);
}, 1500)</script>"""


@pytest.mark.parametrize("width", [600, 1200])
def test_the_page_works_in_a_browser(tmp_path: Path, width: int):
    circuit = hostile_circuit()
    # The policy keeps even our own asking script out, so it is taken off here.
    text = re.sub(r"<meta http-equiv[^>]*>", "", circuit_page(circuit))
    path = tmp_path / "page.html"
    path.write_text(text.replace("</body>", f"{ASK}</body>"), encoding="utf-8")
    dom, complaints = browse(path, tmp_path / "profile", width)
    assert complaints == []
    title = re.search(r"<title>found (.*?)</title>", dom)
    assert title, "the asking script did not run"
    found = json.loads(html.unescape(title[1]))
    assert found["wide"][0] <= found["wide"][1] == width
    assert "<script>document.title" in found["panel"] and "spectrum" in found["panel"]
    assert "flows in from" in found["panel"] and "eigenvalue" in found["panel"]
    assert found["bars"] == 12 and found["lit"] > 0
    assert found["before"] == 0 < found["gone"]
    assert found["zoomed"] and found["back"] and found["chosen"] == 0 and found["clicked"] == 1
    assert re.search(r"\n→ .*\n[+−][\d.]+ logits", found["tip"])


def test_the_page_under_its_policy_in_a_browser(tmp_path: Path):
    path = tmp_path / "page.html"
    path.write_text(circuit_page(hostile_circuit()), encoding="utf-8")
    dom, complaints = browse(path, tmp_path / "profile")
    assert complaints == []
    assert "<title>Circuit: &lt;img" in dom
    assert re.search(r'id="shown"[^>]*>all: \d+ of \d+ flows', dom)
