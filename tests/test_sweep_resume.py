"""Sweeps: the same bits however they are interrupted, split or damaged."""

import functools
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
from small_host import (
    Interrupted,
    bytes_of,
    counted,
    log_calls,
    shards,
    small_host,
    steps,
    sweep,
    truncate,
)

from tl_bilinear.sweeps import (
    Sweep,
    SweepError,
    run_sweep,
    token_directions,
)
from tl_bilinear.sweeps.computations import make_computation

pytestmark = pytest.mark.one_major(3)
TESTS = Path(__file__).parent


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
