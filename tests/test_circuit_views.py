"""A circuit as a figure: nothing overlaps, nothing is cut off, widths are shares."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from random_circuits import HOSTILE, circuits, random_circuit, story
from test_circuit import small_circuit

from tl_bilinear.circuits import Circuit
from tl_bilinear.views import circuit_figure, save_figure
from tl_bilinear.views.circuit_layout import Layout, lay_out
from tl_bilinear.views.circuit_names import caption_of, name_of, shown_token, top_tokens
from tl_bilinear.views.circuit_routes import Box
from tl_bilinear.views.circuit_sizes import Sizes
from tl_bilinear.views.circuit_wires import drawn_edges
from tl_bilinear.views.figure import NEGATIVE, POSITIVE

pytestmark = pytest.mark.one_major(3)


def measure(text: str, size: float) -> float:
    return 0.6 * size * len(text)


def laid_out(circuit: Circuit, width: float = 396) -> Layout:
    return lay_out(circuit, Sizes(width), measure)


def overlaps(boxes: list[Box]) -> list[tuple[str, str]]:
    return [
        (a.node.id, b.node.id)
        for a, b in itertools.combinations(boxes, 2)
        if abs(a.x - b.x) < (a.width + b.width) / 2 - 1e-6
        and abs(a.y - b.y) < (a.height + b.height) / 2 - 1e-6
    ]


def cut_off(layout: Layout) -> list[str]:
    return [
        box.node.id
        for box in layout.boxes.values()
        if box.x - box.width / 2 < -1e-6
        or box.x + box.width / 2 > layout.width + 1e-6
        or box.bottom < 0
        or box.top > layout.height
    ]


def point(points: tuple[tuple[float, float], ...], part: float) -> tuple[float, float]:
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = points
    weights = ((1 - part) ** 3, 3 * part * (1 - part) ** 2, 3 * part**2 * (1 - part), part**3)
    return (
        sum(w * x for w, x in zip(weights, (ax, bx, cx, dx), strict=True)),
        sum(w * y for w, y in zip(weights, (ay, by, cy, dy), strict=True)),
    )


def boxes_crossed(layout: Layout) -> set[tuple[str, str]]:
    """(line, box): lines that pass behind a box that is not theirs."""
    found = set()
    for wire in layout.wires:
        pieces = range(0, len(wire.points) - 1, 3)
        path = [point(wire.points[i : i + 4], step / 12) for i in pieces for step in range(13)]
        for box in layout.boxes.values():
            if box.node.id not in (wire.edge.source, wire.edge.target) and any(
                abs(x - box.x) < box.width / 2 - 0.5 and abs(y - box.y) < box.height / 2 - 0.5
                for x, y in path
            ):
                found.add((f"{wire.edge.source} -> {wire.edge.target}", box.node.id))
    return found


# ---- layout -------------------------------------------------------------------------------


@settings(max_examples=20)
@given(circuits())
def test_every_circuit_has_its_place(circuit):
    layout = laid_out(circuit, 234)
    assert overlaps(list(layout.boxes.values())) == []
    assert cut_off(layout) == []
    drawn = {node.id for node in circuit.nodes if node.kind != "remainder"}
    assert set(layout.boxes) == drawn
    for wire in layout.wires:
        assert layout.boxes[wire.edge.source].y < layout.boxes[wire.edge.target].y
    fed = {e.target for e in circuit.edges if circuit.node(e.source).kind == "remainder"}
    assert {stub.target.id for stub in layout.stubs} == fed


@pytest.mark.parametrize("width", [234, 396])
@pytest.mark.parametrize(("seed", "n"), [(1, 10), (2, 26), (4, 70)])
def test_nothing_overlaps_and_lines_go_around_boxes(width, seed, n):
    circuit = random_circuit(seed, n_inner=n, n_layers=4, tokens=story(24))
    layout = laid_out(circuit, width)
    assert overlaps(list(layout.boxes.values())) == [] and cut_off(layout) == []
    crossed = boxes_crossed(layout)
    assert len(crossed) <= 0.03 * len(layout.wires), crossed
    assert layout.caption[-1][0][1] > 0
    assert layout.width < 1.4 * width


def test_an_overlap_and_a_crossing_are_found():
    layout = laid_out(random_circuit(2, n_inner=26))
    boxes = list(layout.boxes.values())
    assert overlaps([boxes[0], replace(boxes[1], x=boxes[0].x, y=boxes[0].y)])
    wide = {**layout.boxes, "wall": Box(boxes[0].node, 0, layout.height / 2, 9999, 5, ())}
    assert boxes_crossed(replace(layout, boxes=wide)) and cut_off(replace(layout, boxes=wide))


def test_a_hundred_columns_widen_the_picture():
    circuit = random_circuit(0, n_inner=200, n_layers=6, tokens=story(120))
    layout = laid_out(circuit, 234)
    assert layout.width > 234 and not layout.upright
    assert overlaps(list(layout.boxes.values())) == []


def test_layers_go_up_and_heads_go_across():
    layout = laid_out(random_circuit(2, n_inner=26, n_layers=4))
    middle = {band.label: band.low for band in layout.bands}
    labels = [label for label, _ in sorted(middle.items(), key=lambda item: item[1])]
    assert labels == sorted(labels, key=lambda label: (label[:2], "MLP" in label))
    tokens = [b for b in layout.boxes.values() if b.node.kind == "token"]
    columns = {b.node.position or 0: b.x for b in tokens}
    assert [columns[p] for p in sorted(columns)] == sorted(columns.values())
    for box in layout.boxes.values():
        ends = (box.node.source_position, box.node.position)
        if box.node.kind == "head" and set(ends) <= set(columns):
            near = [columns[p] for p in ends if p is not None]
            assert min(near) - 20 <= box.x <= max(near) + 20


def test_lines_are_as_wide_as_their_shares():
    circuit = small_circuit()
    widths = {w.edge.source: w.width for w in laid_out(circuit).wires}
    widest = Sizes(1).widest
    assert widths == {"E.0": widest, "L0.m0.0": widest}
    (stub,) = laid_out(circuit).stubs
    assert stub.share == -0.25 and stub.width == pytest.approx(widest / 6)
    assert [node.id for node in stub.sources] == ["rest.0.0"]


def test_small_flows_are_left_out_and_counted():
    circuit = random_circuit(4, n_inner=60, n_layers=4)
    names = {node.id for node in circuit.nodes if node.kind != "remainder"}
    edges = drawn_edges(circuit, names, 0.5)
    inner = [e for e in circuit.edges if e.source in names]
    assert 24 <= len(edges) < len(inner) == len(drawn_edges(circuit, names, 99))
    assert {edge.source for edge in edges} == {edge.source for edge in inner}
    assert {edge.target for edge in edges} == {edge.target for edge in inner}
    layout = lay_out(circuit, Sizes(396), measure, per_node=0.5)
    assert len(layout.wires) == len(edges)
    text = " ".join(line for _, line in layout.caption)
    assert f"{len(inner) - len(edges)} smaller flows are not drawn" in text
    assert "not drawn" not in caption_of(circuit)


def test_the_caption_says_what_was_kept():
    text = caption_of(small_circuit())
    assert "Kept: 86 % of the sum of |shares|; completeness 0.80." in text
    assert "not followed (−0.25 logits)" in text and "attention patterns" in text


# ---- names --------------------------------------------------------------------------------


def test_a_mode_is_named_by_its_top_tokens():
    node = replace(small_circuit().node("L0.m0.0"), label="L0.m0 λ=+2")
    assert name_of(node, 200, 6, measure) == "m0 λ=+2"
    for tokens in ([" his", " her", "x"], [(" his", 1.0), (" her", 0.5), ("x", 0.1)]):
        named = replace(node, details={"bottom_tokens": ["no"], "top_tokens": tokens})
        assert top_tokens(named) == [" his", " her", "x"]
        assert name_of(named, 200, 6, measure) == "his · her · x"
        assert name_of(named, 40, 6, measure) == "his · her"
        assert name_of(named, 10, 6, measure) == "h…"


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" his", "his"),
        (" ", "␣"),
        ("  ", "␣␣"),
        ("", "∅"),
        ("\n", "↵"),
        ("a b", "a b"),
        ("<s>", "<s>"),
    ],
)
def test_tokens_in_a_picture(token, shown):
    assert shown_token(token) == shown


# ---- the figure ---------------------------------------------------------------------------


def test_text_stays_in_its_box():
    """Rendered, with the fonts of this machine, hostile tokens included."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    circuit = random_circuit(7, n_inner=14, n_layers=2, tokens=HOSTILE, names=HOSTILE)
    figure = circuit_figure(circuit)
    (axes,) = figure.axes
    renderer = FigureCanvasAgg(figure).get_renderer()
    patches: Any = axes.patches
    boxes = [p.get_window_extent(renderer) for p in patches if type(p).__name__ == "FancyBboxPatch"]
    inside, whole = 0, figure.bbox
    for text in axes.texts:
        extent = text.get_window_extent(renderer)
        assert whole.x0 - 1 <= extent.x0 and extent.x1 <= whole.x1 + 1, text.get_text()
        assert whole.y0 - 1 <= extent.y0 and extent.y1 <= whole.y1 + 1, text.get_text()
        middle = ((extent.x0 + extent.x1) / 2, (extent.y0 + extent.y1) / 2)
        for box in boxes:
            if box.contains(*middle):
                assert box.x0 - 0.5 <= extent.x0 and extent.x1 <= box.x1 + 0.5, text.get_text()
                inside += 1
    assert inside >= len(boxes) > 10


def test_signs_have_their_colours():
    figure = circuit_figure(small_circuit())
    patches: Any = figure.axes[0].patches
    lines = [p for p in patches if type(p).__name__ == "PathPatch"]
    from matplotlib.colors import to_hex

    assert [to_hex(line.get_edgecolor()) for line in lines] == [POSITIVE] * 2
    negative = small_circuit(edges=tuple(replace(e, share=-e.share) for e in small_circuit().edges))
    patches = circuit_figure(negative).axes[0].patches
    lines = [p for p in patches if type(p).__name__ == "PathPatch"]
    assert [to_hex(line.get_edgecolor()) for line in lines] == [NEGATIVE] * 2


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_the_same_circuit_gives_the_same_bytes(tmp_path: Path, suffix: str):
    circuit = small_circuit(target_label='<s> "你好" שלום')
    paths = [tmp_path / f"{name}.{suffix}" for name in ("a", "b")]
    for path in paths:
        path.write_text("an older file")
        save_figure(circuit_figure(circuit, width=3.25), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(tmp_path.iterdir()) == paths


def test_figures_refuse():
    with pytest.raises(ValueError, match="at least 2 inches"):
        circuit_figure(small_circuit(), width=1)
    with pytest.raises(ValueError, match="as .svg, .png or .pdf"):
        save_figure(circuit_figure(small_circuit()), "a.gif")


def test_what_no_font_has_is_written_by_number():
    from tl_bilinear.views.fonts import drawable

    assert drawable("a\U0010fffdλ⊗") == "a⟨U+10FFFD⟩λ⊗"
