"""Sweeps: right, the same bits however they are interrupted or split, and resumed."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import hosts, native
from safetensors.torch import save_file
from small_host import log_calls, small_host, steps, sweep

import tl_bilinear as tlb
from tl_bilinear.decompositions.eigen import Gauge
from tl_bilinear.hosts.norm import Norm
from tl_bilinear.sweeps import (
    Directions,
    Sweep,
    SweepError,
    file_directions,
    output_basis,
    run_sweep,
    target_directions,
    token_directions,
)
from tl_bilinear.sweeps.computations import make_computation
from tl_bilinear.sweeps.directions import Space
from tl_bilinear.sweeps.plan import parse_memory, shown

TESTS = Path(__file__).parent


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of a finished sweep; nothing else may be in its folder."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert not [name for name in found if name.startswith((".", "failed"))]
    assert {"manifest.json", "directions.json", "index.parquet"} <= set(found)
    return found


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("layer*.safetensors"))


# ---- what is computed --------------------------------------------------------------------


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("norm", ["RMS", "LN"])
def test_rows_are_the_dense_twin(host: str, norm: str, tmp_path: Path) -> None:
    model = native(norm, host)
    here = tlb.get_host(model)
    computation = make_computation("eigenvalues", {"k": "5", "eigenvectors": "true"})
    done = run_sweep(model, computation, token_directions(model), [1], tmp_path, progress=False)
    w = model.W_U.detach().T
    gain = here.final_norm().gain
    u = w if gain is None else w * gain.detach()
    u = u - u.mean(-1, keepdim=True) if norm == "LN" else u
    dense = here.mlp_tensor(1).to_dense()
    matrices = torch.einsum("no,oij->nij", u, (dense + dense.mT) / 2)
    values = torch.linalg.eigvalsh(matrices)
    order = values.abs().argsort(-1, descending=True)
    tensors = done.tensors(1)
    torch.testing.assert_close(
        tensors["eigenvalues"], values.gather(-1, order)[:, :5], rtol=1e-9, atol=1e-11
    )
    v = tensors["eigenvectors"]
    image = torch.einsum("nij,nkj->nki", matrices, v)
    torch.testing.assert_close(image, tensors["eigenvalues"][..., None] * v, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(tensors["norm"], matrices.flatten(1).norm(dim=1), rtol=1e-9, atol=0)
    assert done.manifest.content["directions"]["folded"] == ["final norm"]


@pytest.mark.parametrize("gauge", ["none", "traceless"])
def test_statistics_of_the_spectrum(gauge: Gauge, tmp_path: Path) -> None:
    host = small_host()
    computation = make_computation("spectrum", {"top": 2, "gauge": gauge})
    run_sweep(host, computation, output_basis(host), [0], tmp_path, progress=False)
    frame = Sweep.load(tmp_path).dataframe()
    assert list(frame["label"]) == [f"e{axis}" for axis in range(6)]
    for row in range(6):
        eigen = tlb.eigendecompose(host.mlp_tensor(0), torch.eye(6).double()[row], gauge=gauge)
        values = eigen.eigenvalues.tolist()
        squares = sum(value**2 for value in values)
        mean = sum(values) / 6
        variance = sum((value - mean) ** 2 for value in values) / 6
        expected = {
            "norm": squares**0.5,
            "trace": float(host.mlp_tensor(0).to_dense()[row].trace()),
            "effective_rank": sum(map(abs, values)) ** 2 / squares,
            "kurtosis": sum((value - mean) ** 4 for value in values) / 6 / variance**2,
            "top_share": (values[0] ** 2 + values[1] ** 2) / squares,
            "positive_share": sum(value**2 for value in values if value > 0) / squares,
            "largest": max(values),
            "smallest": min(values),
            "outliers": int(eigen.outliers()),
        }
        for name, value in expected.items():
            assert frame[name][row] == pytest.approx(value, rel=1e-9), name


def test_a_sweep_opens_as_a_frame_and_by_name(tmp_path: Path) -> None:
    import pandas

    done = sweep(tmp_path)
    frame = Sweep.load(tmp_path).dataframe()
    assert len(frame) == 40 and list(frame.columns) == [
        *("layer", "direction", "label", "image.0", "image.1", "image.2", "image.3", "image.4"),
        *("image.5", "powers.0", "powers.1", "trace"),
    ]
    host = small_host()
    w = host.W_U.T
    direct = [steps(host.mlp_tensor(layer), w) for layer in (0, 1)]
    for name in ("trace", "powers", "image"):
        for layer in (0, 1):
            torch.testing.assert_close(done.tensors(layer)[name], direct[layer][name])
    torch.testing.assert_close(
        torch.tensor(frame["powers.1"].to_numpy()), torch.cat([d["powers"][:, 1] for d in direct])
    )
    assert torch.equal(done.at(1, 7)["image"], done.tensors(1)["image"][7])
    rows = done.dataframe("powers")
    picked = rows[(rows.layer == 1) & (rows.direction == 7)]
    assert picked["powers"].tolist() == done.at(1, 7)["powers"].tolist()
    assert list(picked["k"]) == [0, 1] and set(picked["label"]) == {"7"}
    top = done.top(3, "trace")["trace"].abs()
    assert top.tolist() == sorted(frame["trace"].abs(), reverse=True)[:3]
    assert pandas.read_parquet(done.index).attrs["fingerprint"] in str(done)
    assert set(done.tensors(0)) == {"trace", "powers", "image"}
    for call, words in (
        (lambda: done.tensors(9), "layer 9 was not swept"),
        (lambda: done.at(0, 20), "direction 20 was not swept"),
        (lambda: done.top(1, "size"), "has no column 'size'"),
        (lambda: done.dataframe("size"), "no tensor 'size'"),
        (lambda: done.dataframe("trace"), "need [k]"),
    ):
        with pytest.raises(ValueError, match=words.replace("[", "\\[")):
            call()


def test_sixteen_bit_models_are_swept_in_float32(tmp_path: Path) -> None:
    host = small_host(d_model=9, dtype=torch.bfloat16)
    done = run_sweep(host, "spectrum", token_directions(host), None, tmp_path, progress=False)
    assert done.tensors(0)["norm"].dtype == torch.float32


def test_directions_of_every_kind(tmp_path: Path) -> None:
    model = native("RMS", hosts()[0])
    here = tlb.get_host(model)
    w, gain = model.W_U.detach().T, here.final_norm().gain
    assert gain is not None
    some = token_directions(model, range(3, 6))
    assert some.vectors.untyped_storage().data_ptr() == model.W_U.untyped_storage().data_ptr()
    assert torch.equal(some.vectors, token_directions(model, [3, 4, 5]).vectors)
    pairs = target_directions(model, [(3, 5), 4])
    torch.testing.assert_close(pairs.at(here, 0, 0, 2), torch.stack([w[3] - w[5], w[4]]) * gain)
    assert pairs.labels == ("'3' − '5'", "'4'")
    path = tmp_path / "f.safetensors"
    save_file({"W_dec": w[:7].contiguous(), "W_enc": w[:7].T.contiguous(), "b": w[0].clone()}, path)
    cases: list[tuple[Space, torch.Tensor]]
    cases = [("logits", w[2:4] * gain), ("stream", w[2:4]), ("mlp_out", w[2:4])]
    for space, expected in cases:
        found = file_directions(path, "W_dec", space=space)
        torch.testing.assert_close(found.at(here, 0, 2, 4), expected)
        columns = file_directions(path, "W_enc", columns=True, space=space)
        torch.testing.assert_close(columns.at(here, 0, 2, 4), expected)


# ---- interruptions -----------------------------------------------------------------------


class Interrupted(Exception):
    pass


def breaking(tensor: Any, u: torch.Tensor, calls: list[int], at: list[int]) -> dict[str, Any]:
    """`steps`, which fails at the calls numbered in `at`."""
    calls.append(len(u))
    if len(calls) in at:
        raise Interrupted
    return steps(tensor, u)


def counted(at: list[int]) -> tuple[Callable[..., Any], list[int]]:
    calls: list[int] = []

    def compute(tensor, u):
        return breaking(tensor, u, calls, at)

    return compute, calls


def test_killed_twice_and_resumed_is_the_same(tmp_path: Path) -> None:
    whole, calls = counted([])
    sweep(tmp_path / "whole", whole)
    assert calls == [2] * 20
    broken, calls = counted([4, 13])
    folder = tmp_path / "broken"
    for finished in (3, 11):
        with pytest.raises(Interrupted):
            sweep(folder, broken)
        assert len(shards(folder)) == finished
        with pytest.raises(SweepError, match="unfinished"):
            Sweep.load(folder).dataframe()
    done = sweep(folder, broken)
    assert len(calls) == 22, "20 chunks, and the two that were lost"
    assert len(done.computed) == 9
    assert bytes_of(folder) == bytes_of(tmp_path / "whole")
    again = sweep(folder, broken)
    assert len(calls) == 22 and again.computed == ()


def start(*arguments: Any) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_sigkill_loses_the_chunk_at_work_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, log = tmp_path / "killed", tmp_path / "log"
    process = start(TESTS / "small_host.py", folder, log)
    while len(shards(folder)) < 6:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = len(shards(folder))
    assert 6 <= finished < 20
    monkeypatch.setattr(sys, "argv", ["", "", str(log)])
    done = sweep(folder, log_calls)
    assert len(done.computed) == 20 - finished and not done.damaged
    assert 20 <= len(log.read_text().split()) <= 21
    sweep(tmp_path / "whole", log_calls)
    assert bytes_of(folder) == bytes_of(tmp_path / "whole")


def test_two_torchrun_processes_are_equal_to_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    run = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = start(*run, TESTS / "small_host.py", tmp_path / "two", log)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert len(log.read_text().split()) == 20
    monkeypatch.setattr(sys, "argv", ["", "", str(tmp_path / "log1")])
    sweep(tmp_path / "one", log_calls)
    assert log.with_name("log1").read_text() == log.read_text()
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "one")


def test_other_numbers_of_processes_resume_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks one after the other: each gives up waiting for the rest, which is told."""
    compute, calls = counted([])
    sweep(tmp_path / "whole", compute)
    broken, calls = counted([4])
    folder = tmp_path / "broken"
    with pytest.raises(Interrupted):
        sweep(folder, broken)
    for rank, words in ((2, "the index"), (0, "chunks of other ranks")):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        with pytest.raises(SweepError, match=f"waited 0 s for {words}.*same command resumes"):
            sweep(folder, broken, patience=0.0)
    assert len(shards(folder)) == 14 and len(calls) == 15
    assert [path.name for path in folder.glob("failed*")] == ["failed-rank-2.txt"]
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert len(sweep(folder, broken).computed) == 6
    assert bytes_of(folder) == bytes_of(tmp_path / "whole")


def test_a_rank_that_failed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tl_bilinear.sweeps import ranks

    broken, _ = counted([1])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")

    def fail_meanwhile(_: float) -> None:
        (tmp_path / "failed-rank-1.txt").write_text("its disk is full")

    monkeypatch.setattr(ranks.time, "sleep", fail_meanwhile)
    with pytest.raises(SweepError, match="rank 1 failed: its disk is full"):
        sweep(tmp_path)


@pytest.mark.parametrize(
    ("rank", "size"), [("2", "2"), ("-1", "2"), ("x", "2"), ("0", None), (None, "2")]
)
def test_ranks_that_do_not_fit(
    rank: str | None, size: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", size)):
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="do not fit"):
        sweep(tmp_path / "s")
    assert not (tmp_path / "s").exists()


# ---- folders -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"chunk": 4}, "chunk"),
        ({"threads": 2}, "threads"),
        ({"dtype": torch.float32}, "dtype"),
        ({"layers": [1, 0]}, "layers"),
        ({"compute": make_computation("spectrum", {"top": 2})}, "computation.name"),
        ({"compute": functools.partial(steps, seconds=0.001)}, "computation.arguments.bound"),
        ({"directions": range(1, 20)}, "directions.source"),
        ({"weight": 7}, "weights"),
    ],
)
def test_another_sweep_is_refused(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    def run(**options: Any) -> Sweep:
        host = small_host()
        if "weight" in options:
            host.model.blocks[1].mlp.W_in[0, options.pop("weight")] += 1e-9
        compute, layers = options.pop("compute", steps), options.pop("layers", None)
        directions = token_directions(host, options.pop("directions", None))
        settings = {"chunk": 8, "progress": False, **options}
        return run_sweep(host, compute, directions, layers, tmp_path, **settings)

    run()
    before = bytes_of(tmp_path)
    with pytest.raises(SweepError, match=f"holds another sweep: .*{named}"):
        run(**change)
    assert bytes_of(tmp_path) == before
    assert run().computed == ()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def exchange(path: Path) -> None:
    path.write_bytes(shards(path.parent)[0].read_bytes())


@pytest.mark.parametrize("damage", [truncate, flip, empty, exchange, Path.unlink])
def test_a_damaged_shard_is_computed_again(
    damage: Callable[[Path], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compute, calls = counted([])
    sweep(tmp_path, compute)
    before = bytes_of(tmp_path)
    damage(shards(tmp_path)[5])
    done = sweep(tmp_path, compute)
    assert len(calls) == 21 and bytes_of(tmp_path) == before
    if damage is not Path.unlink:
        (told,) = done.damaged
        assert told.startswith("layer000-00000010.safetensors: ")
        assert told in capsys.readouterr().err


def test_a_damaged_index_is_written_again(tmp_path: Path) -> None:
    sweep(tmp_path)
    before = bytes_of(tmp_path)
    truncate(tmp_path / "index.parquet")
    with pytest.raises(SweepError, match="no whole index"):
        Sweep.load(tmp_path).dataframe()
    assert sweep(tmp_path).computed == ()
    assert bytes_of(tmp_path) == before


def test_what_a_kill_left_is_swept_up(tmp_path: Path) -> None:
    (tmp_path / ".manifest.json.0123.unfinished").write_text("{")
    sweep(tmp_path)
    bytes_of(tmp_path)


def test_a_second_process_is_sent_away(tmp_path: Path) -> None:
    from tl_bilinear.sweeps.ranks import exclusive

    broken, _ = counted([4])
    with pytest.raises(Interrupted):
        sweep(tmp_path, broken)
    with exclusive(tmp_path), pytest.raises(SweepError, match="another process is at work"):
        sweep(tmp_path, broken)
    sweep(tmp_path, broken)


@pytest.mark.parametrize("call", [1, 6])
def test_a_full_disk_is_one_error_and_resumes(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from tl_bilinear.sweeps import shards as module

    real, calls = module.write_durably, []

    def write(path: Path, content: bytes) -> None:
        calls.append(path)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, content)

    monkeypatch.setattr(module, "write_durably", write)
    with pytest.raises(OSError, match="No space left on device.*run the same command again"):
        sweep(tmp_path)
    assert len(shards(tmp_path)) == call - 1
    sweep(tmp_path)
    bytes_of(tmp_path)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "manifest.json").write_text("{")
    for name, error, words in (
        ("file", SweepError, "is a file: give a folder"),
        ("file/below", OSError, r"cannot be written \(Not a directory\): give another"),
        ("other", SweepError, "is not empty and holds no sweep"),
        ("torn", SweepError, "manifest.json is damaged"),
    ):
        with pytest.raises(error, match=words):
            sweep(tmp_path / name)
    with pytest.raises(SweepError, match="holds no sweep"):
        Sweep.load(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(
        ["file", "other", "thesis.tex", "torn", "manifest.json"]
    )


# ---- memory ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "size"),
    [(1000, 1000), ("1000", 1000), ("4GiB", 2**32), ("1.5g", 3 * 2**29), ("800 MB", 800 * 2**20)],
)
def test_budgets_are_read(words: int | str, size: int) -> None:
    assert parse_memory(words) == size
    assert size <= (parse_memory(shown(size)) or 0) <= 1.01 * size


@pytest.mark.parametrize("words", ["much", "-1", "0", "4 apples", ""])
def test_budgets_that_are_none(words: str) -> None:
    with pytest.raises(ValueError, match="must be bytes or a text such as '4GiB'"):
        parse_memory(words)


def test_chunks_keep_to_the_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = {"chunk": None, "bytes_per_direction": 2**30}
    with pytest.raises(ValueError, match="too small: 1.1.GiB are needed .* give memory="):
        sweep(tmp_path / "a", memory="1GiB", **size)
    assert not (tmp_path / "a").exists()
    done = sweep(tmp_path / "b", memory="5.2GiB", progress=True, **size)
    assert done.manifest.chunk == 5
    first = capsys.readouterr().err.splitlines()[0]
    assert "2 layers x 20 directions in 8 chunks of 5; about 5.1" in first, first
    shards(tmp_path / "b")[0].unlink()
    assert len(sweep(tmp_path / "b", memory="20GiB", **size).computed) == 1, "the cut stays"
    with pytest.raises(ValueError, match="too small: 5.1.GiB are needed for chunks of 5"):
        sweep(tmp_path / "b", memory="3GiB", **size)


PEAK = """
import sys
import pyarrow.parquet, torch
from pathlib import Path
from small_host import small_host
from tl_bilinear.sweeps import run_sweep, token_directions
from tl_bilinear.sweeps.computations import make_computation
def kib(name):  # not ru_maxrss, which begins with what the parent process had
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
torch.linalg.eigh(torch.eye(8) @ torch.eye(8))
host = small_host(128, 512, 400, 1)
directions = token_directions(host)
before = kib("VmRSS")
computation = make_computation("eigenvalues", {"k": 128, "eigenvectors": True})
done = run_sweep(host, computation, directions, None, sys.argv[1], memory="300MiB", progress=False)
print(done.manifest.chunk, kib("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
def test_the_peak_stays_within_the_budget(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    command = [sys.executable, "-c", PEAK, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    chunk, added = map(int, done.stdout.split())  # KiB
    assert 100 < chunk < 256, "the budget decides"
    assert 2**16 < added < 300 * 2**10, "the budget is used, and kept"


# ---- bad input ---------------------------------------------------------------------------


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


# ---- the command -------------------------------------------------------------------------


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
