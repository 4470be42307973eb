"""`tl-bilinear trace`: every format, the table, and one line for bad input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from random_circuits import HOSTILE, random_circuit

from tl_bilinear.circuits import Circuit

CIRCUIT = random_circuit(3, n_inner=8, tokens=HOSTILE[:10], names=HOSTILE)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The command with a model and a tracing that take no time; what they were asked is kept."""
    from typer.testing import CliRunner

    import tl_bilinear.checkpoints
    import tl_bilinear.circuits
    from tl_bilinear.cli import app

    asked: dict[str, Any] = {}

    def load(name: str, **options: Any) -> str:
        asked["load"] = (name, options)
        if name == "no-such-model":
            raise ValueError("'no-such-model' is neither\na bundled model nor a folder")
        return "model"

    def trace_circuit(*arguments: Any, **options: Any) -> Circuit:
        asked["trace"] = (arguments, options)
        return CIRCUIT

    monkeypatch.setattr(tl_bilinear.checkpoints, "load", load)
    monkeypatch.setattr(tl_bilinear.circuits, "trace_circuit", trace_circuit)

    def invoke(*arguments: Any) -> Any:
        words = ["trace", "--prompt", "Once upon", "--target", " a", *map(str, arguments)]
        done = CliRunner().invoke(app, words)
        done.asked = asked  # pyright: ignore[reportAttributeAccessIssue]
        return done

    return invoke


STARTS = {
    "svg": b"<?xml",
    "png": b"\x89PNG",
    "pdf": b"%PDF",
    "html": b"<!DOCTYPE html>",
    "json": b'{"format": "tl_bilinear circuit", "version": 1',
    "dot": b"digraph circuit {",
    "mmd": b"flowchart BT",
    "graphml": b"<?xml",
}


@pytest.mark.parametrize("suffix", STARTS)
def test_the_suffix_decides(run: Callable[..., Any], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"circuit.{suffix}"
    done = run("-o", path)
    assert done.exit_code == 0, done.output
    assert path.read_bytes().startswith(STARTS[suffix])
    assert list(tmp_path.iterdir()) == [path] and f"written: {path}" in done.stdout


def test_the_table_is_the_sum(run: Callable[..., Any]) -> None:
    done = run()
    assert done.exit_code == 0, done.output
    for text in (f"{CIRCUIT.target:+.4f}", f"{CIRCUIT.remainder:+.4f}", "completeness"):
        assert text in done.stdout
    assert "tracing" in done.stderr and "tracing" not in done.stdout
    assert "\x00" not in done.stdout and "\u202e" not in done.stdout


def test_what_is_asked_is_traced(run: Callable[..., Any]) -> None:
    asked = run().asked
    assert asked["load"] == ("stories-5l", {"host": "auto", "frozen_gates": False})
    assert asked["trace"] == (
        ("model", "Once upon", " a", None),
        {"max_nodes": None, "kept": None},
    )
    options = ["--against", " the", "--corrupted", "Twice upon", "--max-nodes", 5]
    asked = run(*options, "--model", "m", "--frozen-gates", "--kept", 0.5).asked
    assert asked["load"] == ("m", {"host": "auto", "frozen_gates": True})
    assert asked["trace"] == (
        ("model", "Once upon", (" a", " the"), "Twice upon"),
        {"max_nodes": 5, "kept": 0.5},
    )


def test_attribution_graphs(run: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    assert run("-o", path, "--attribution-graph", "my-graph").exit_code == 0
    assert json.loads(path.read_text()) == CIRCUIT.to_attribution_graph("my-graph")
    done = run("-o", tmp_path / "graphs", "--attribution-graph", "my-graph")
    assert done.exit_code == 0, done.output
    assert {p.name for p in (tmp_path / "graphs").iterdir()} == {
        "my-graph.json",
        "graph-metadata.json",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "circuit.gif"], "circuit.gif: give one of the suffixes .svg, .png"),
        (["-o", "circuit"], "give one of the suffixes"),
        (["-o", "no/such/folder/circuit.svg"], "does not exist"),
        (["-o", "."], "give one of the suffixes"),
        (["-o", "circuit.svg", "--attribution-graph", "g"], "a .json file or a folder"),
        (["-o", "circuit.json", "--attribution-graph", "a b"], "the slug 'a b'"),
        (["--attribution-graph", "g"], "needs --output"),
        (["-o", "circuit.svg", "--width", "1"], "at least 2 inches"),
        (["--model", "no-such-model"], "neither a bundled model"),
    ],
)
def test_bad_input_is_one_line(
    run: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 1
    (line,) = [line for line in done.stderr.splitlines() if "tl-bilinear:" in line]
    assert message in line
    assert list(tmp_path.iterdir()) == []
