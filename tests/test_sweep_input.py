"""Sweeps: bad input is one clear error, and the command."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_host import (
    shards,
    small_host,
    steps,
    sweep,
    truncate,
)

import tl_bilinear as tlb
from tl_bilinear.hosts.norm import Norm
from tl_bilinear.sweeps import (
    Directions,
    Sweep,
    SweepError,
    file_directions,
    run_sweep,
    target_directions,
    token_directions,
)
from tl_bilinear.sweeps.computations import make_computation


def vectors(*rows: list[float]) -> Directions:
    return Directions(torch.tensor(rows), tuple(str(i) for i in range(len(rows))), "stream", "x")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: vectors([1.0] * 7), "have 7 entries each, and this model's outputs 6"),
        (lambda: vectors([1.0] * 6, [float("nan")] * 6), "1 of the 2 .* not finite .rows 1"),
        (lambda: vectors([0.0] * 6, [1.0] * 6), "1 of the 2 .* only zeros .rows 0"),
        (
            lambda: Directions(torch.ones(1, 6), ("a",), "logits", "x"),
            "direction 0 from x is zero at layer 0 once the norms are folded in",
        ),
        (lambda: Directions(torch.ones(2, 6), ("a",), "stream", "x"), "1 labels for 2"),
        (lambda: Directions(torch.ones(0, 6), (), "stream", "x"), "with a row each"),
        (lambda: token_directions(small_host(), [20]), "ids from 0 to 19"),
        (lambda: token_directions(small_host(), []), "ids from 0 to 19"),
        (lambda: target_directions(small_host(), []), "no targets"),
        (lambda: file_directions("none.safetensors"), "there is no file"),
        (lambda: torch.ones(6), "must be a matrix"),
    ],
)
def test_bad_directions(
    make: Callable[[], Any],
    words: str,
    tmp_path: Path,
    unchecked: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = small_host()
    monkeypatch.setattr(  # nothing of it is left in the logits
        host, "final_norm", lambda: Norm(gain=torch.zeros(6), bias=None, centred=False)
    )
    with pytest.raises(ValueError, match=words):
        run_sweep(host, steps, make(), None, tmp_path / "s", progress=False)
    assert not (tmp_path / "s").exists()


def test_bad_files_of_directions(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    save_file({"a": torch.ones(2, 6), "b": torch.ones(2, 6), "i": torch.ones(2, 6).int()}, path)
    with pytest.raises(ValueError, match="no matrix was named; its tensors are"):
        file_directions(path)
    with pytest.raises(ValueError, match="no matrix 'c'"):
        file_directions(path, "c")
    with pytest.raises(ValueError, match="directions are real numbers"):
        file_directions(path, "i")
    truncate(path)
    with pytest.raises(ValueError, match="no safetensors file, or a damaged one"):
        file_directions(path, "a")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"compute": "eigenvalue"}, "no computation 'eigenvalue': .*spectrum"),
        ({"compute": 3}, "a name, a computation or a function"),
        ({"compute": "eigenvalues"}, "between 1 and d_in = 6, got 8"),
        ({"layers": [2]}, "different layers of this model's 2"),
        ({"layers": []}, "different layers"),
        ({"layers": [0, 0]}, "different layers"),
        ({"chunk": 0}, "`chunk` must be at least 1"),
        ({"threads": 0}, "`threads` must be at least 1"),
        ({"memory": "lots"}, "`memory` must be bytes"),
        ({"compute": "spectrum", "bytes_per_direction": 1}, "is for functions"),
        ({"host": small_host(act=torch.relu)}, "layer 0 has a .* gate, so its weights alone"),
    ],
)
def test_bad_settings(options: dict[str, Any], words: str, tmp_path: Path, unchecked: None) -> None:
    host = options.pop("host", None) or small_host()
    compute, layers = options.pop("compute", steps), options.pop("layers", None)
    with pytest.raises(ValueError, match=words):
        run_sweep(host, compute, token_directions(host), layers, tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("eigenvalues", {"K": "3"}, "no setting 'K': it has k=8, gauge=none"),
        ("eigenvalues", {"k": "three"}, "must be of type int"),
        ("eigenvalues", {"eigenvectors": "1"}, "must be of type bool"),
    ],
)
def test_bad_settings_of_a_computation(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_computation(name, settings)


def test_every_computation_can_be_made_by_name() -> None:
    for name, kind in tlb.sweeps.computations().items():
        made = make_computation(name)
        assert made.name == name and kind.described
        assert set(made.arguments) == {field.name for field in dataclasses.fields(made)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda t, u: u, "must return a dict of tensors"),
        (lambda t, u: {"a": u[1:]}, r"the 2 directions it is given, got \{'a': \(1, 6\)\}"),
        (lambda t, u: {"a": u.sum()}, "must return a dict of tensors"),
    ],
)
def test_functions_that_return_something_else(
    returned: Callable[..., Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        sweep(tmp_path, returned)
    assert shards(tmp_path) == []


def test_tensors_must_be_the_same_in_every_chunk(tmp_path: Path) -> None:
    def growing(tensor: Any, u: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"a": u[:, : 1 + len(shards(tmp_path)) // 19]}

    with pytest.raises(SweepError, match="the same tensors for every chunk"):
        sweep(tmp_path, growing)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The command, on the small host: loading models is tested elsewhere."""
    from typer.testing import CliRunner

    from tl_bilinear import checkpoints
    from tl_bilinear.cli import app

    monkeypatch.setattr(checkpoints, "load", lambda *_, **__: small_host(d_model=9))
    return lambda *words: CliRunner().invoke(app, ["sweep", *map(str, words)])


def test_the_command_sweeps_and_resumes(run: Callable[..., Any], tmp_path: Path) -> None:
    done = run("-o", tmp_path / "s", "--chunk", 6, "--layers", "1", "--set", "k=3")
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith("1 layers x 20 directions in 4 chunks of 6; about ")
    assert "4, 4 computed now" in done.stdout and str(tmp_path / "s/index.parquet") in done.stdout
    again = run("-o", tmp_path / "s", "--chunk", 6, "--layers", "1", "--set", "k=3")
    assert "4, 0 computed now" in again.stdout and "4 of 4 chunks are there" in again.stderr
    frame = Sweep.load(tmp_path / "s").dataframe()
    assert list(frame.columns[3:]) == [
        "certified",
        *("eigenvalues.0", "eigenvalues.1", "eigenvalues.2", "error", "norm", "residual"),
        "trace_shift",
    ]


def test_the_command_takes_directions_of_every_kind(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "t.json").write_text("[3, [4, 5]]")
    save_file({"W": torch.eye(9)[:4].contiguous()}, tmp_path / "w.safetensors")
    for number, (words, labels) in enumerate(
        [
            (["tokens:3-4"], ["3", "4"]),
            (["basis"], [f"e{axis}" for axis in range(9)]),
            ([f"{tmp_path}/t.json"], ["'3'", "'4' − '5'"]),
            ([f"{tmp_path}/w.safetensors"], [f"W[{row}]" for row in range(4)]),
            ([f"{tmp_path}/w.safetensors:W", "--space", "logits"], [f"W[{r}]" for r in range(4)]),
        ]
    ):
        folder = tmp_path / str(number)
        done = run("-o", folder, "--compute", "spectrum", "--layers", "0", "--directions", *words)
        assert done.exit_code == 0, done.output
        assert list(Sweep.load(folder).dataframe()["label"]) == labels


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--compute", "eigen"], "there is no computation 'eigen'"),
        (["--set", "k"], "a setting is name=value"),
        (["--set", "k=10"], "between 1 and d_in = 9"),
        (["--layers", "2"], "layers are a number or first-last between 0 and 1"),
        (["--directions", "words"], "directions 'words' are not understood"),
        (["--directions", "tokens:5-3"], "tokens are a number or first-last between 0 and 19"),
        (["--directions", "no.safetensors"], "there is no file no.safetensors"),
        (["--directions", "no.json"], "No such file"),
        (["--space", "logits"], "`space` is for safetensors files"),
        (["--memory", "1MB"], "is too small"),
        (["--memory", "some"], "`memory` must be bytes"),
    ],
)
def test_bad_input_is_one_line_and_no_folder(
    run: Callable[..., Any], words: list[str], message: str, tmp_path: Path
) -> None:
    done = run("-o", tmp_path / "s", *words)
    assert done.exit_code == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("tl-bilinear: ") and message in line
    assert not (tmp_path / "s").exists()


def test_ctrl_c_says_how_to_go_on(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tl_bilinear.sweeps import run as module

    real, calls = module.write_shard, []

    def write(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(module, "write_shard", write)
    words = ("-o", tmp_path / "s", "--chunk", 5, "--compute", "spectrum")
    done = run(*words)
    assert done.exit_code == 130
    last = done.stderr.splitlines()[-1]
    assert "interrupted: 2 of 8 chunks are finished" in last and "same command resumes" in last
    assert run(*words).exit_code == 0 and len(calls) == 9


def test_manifests_are_plain_json(tmp_path: Path) -> None:
    content = json.loads((sweep(tmp_path).folder / "manifest.json").read_text())
    assert content["model"] == "small" and content["chunk"] == 2 and content["layers"] == [0, 1]
    assert content["computation"]["name"] == "small_host.steps"
    assert content["directions"]["count"] == 20 and len(content["directions"]["digest"]) == 16
