"""A sweep over 4096 directions: killed twice and resumed, and split over two processes.

`python benchmarks/sweep.py [-o benchmarks/sweep.md]`. Every sweep is the command line, started
anew; kills are SIGKILL while it works. "equal" compares every byte of every file of the folder:
shards, index, labels, manifest. Each process has one thread.
"""

import argparse
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

import tl_bilinear as tlb

N = 4096
KILLS = (0.25, 0.6)
"""Killed once this share of the chunks is finished."""


@dataclass(frozen=True)
class Row:
    """One way of doing the sweep."""

    name: str
    cpu: float
    wall: float
    chunks: str
    equal: str


def differences(folder: Path) -> Path:
    """4096 differences of two unembedding columns of stories-5l, without repetition."""
    w = tlb.load("stories-5l").W_U.detach().T
    pairs = torch.combinations(torch.arange(len(w)))
    chosen = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:N]]
    path = folder / "differences.safetensors"
    save_file({"differences": (w[chosen[:, 0]] - w[chosen[:, 1]]).contiguous()}, path)
    return path


def command(directions: Path, folder: Path, *start: str) -> list[str]:
    words = ["--directions", str(directions), "--space", "logits", "--layers", "2,4"]
    words += ["--set", "eigenvectors=true", "--chunk", "128", "-o", str(folder)]
    return [sys.executable, *start, "-m", "tl_bilinear", "sweep", *words]


def run(words: list[str], kill_at: tuple[Path, int] | None = None) -> None:
    """To the end, or until a folder holds so many shards: then it is killed."""
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    while kill_at is not None and len(shards(kill_at[0])) < kill_at[1]:
        if process.poll() is not None:
            break
        time.sleep(0.005)
    if kill_at is not None:
        process.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    expected = 0 if kill_at is None else -signal.SIGKILL
    if process.returncode != expected:
        raise SystemExit(f"{words} ended with {process.returncode}:\n{output}")


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("layer*.safetensors"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def timed(name: str, work, whole: Path | None, folder: Path) -> Row:
    """CPU seconds of the processes that `work` starts, and whether the folder equals `whole`."""
    wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    chunks = work()
    wall = time.perf_counter() - wall
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    equal = "-" if whole is None else "yes" if content(folder) == content(whole) else "NO"
    return Row(name, cpu, wall, chunks, equal)


def killed_twice(directions: Path, folder: Path) -> str:
    """What each start found finished; a shard's time of writing must never change."""
    words, total, found = command(directions, folder), 2 * N // 128, ["0"]
    written: dict[str, int] = {}
    for share in (*KILLS, None):
        run(words, None if share is None else (folder, int(share * total)))
        times = {path.name: path.stat().st_mtime_ns for path in shards(folder)}
        again = [name for name in written if times[name] != written[name]]
        if again:
            raise SystemExit(f"computed twice: {again}")
        written = times
        found.append(str(len(times)))
    return " -> ".join(found) + ", none twice"


def on_two(directions: Path, folder: Path) -> str:
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    run(command(directions, folder, *start))
    return str(len(shards(folder)))


def on_one(directions: Path, folder: Path) -> str:
    run(command(directions, folder))
    return str(len(shards(folder)))


def memory_row(d: int, rank: int, budget: str, compute: str) -> tuple[str, ...]:
    """Budget, estimate and measured peak of a sweep over a random layer, in its own process."""
    code = Path(__file__).with_name("sweep_memory.py")
    words = [sys.executable, str(code), str(d), str(rank), budget, compute]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return tuple(done.stdout.split())


def page(rows: list[Row], memory: list[tuple[str, ...]]) -> str:
    packages = ("tl_bilinear", "transformer_lens", "torch")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    lines = [
        "# Sweeps",
        "",
        "Written by `benchmarks/sweep.py`: `tl-bilinear sweep`, eigenvalues and eigenvectors "
        f"(k 8) of {N} logit differences in two layers of stories-5l, 64 chunks.",
        "",
        "| sweep | CPU s | wall s | chunks finished | every file equal to the first's |",
        "|---|---:|---:|---|---|",
        *(f"| {r.name} | {r.cpu:.1f} | {r.wall:.1f} | {r.chunks} | {r.equal} |" for r in rows),
        "",
        "Start-up (importing TransformerLens, loading) is in every row once per process. CPU times "
        "of a machine with other work on it.",
        "",
        "Memory beside the model (a random layer, eigenvectors kept), one process each:",
        "",
        "| layer | computation | chunk | budget MiB | estimated MiB | measured peak MiB |",
        "|---|---|---:|---:|---:|---:|",
        *(f"| {' | '.join(row)} |" for row in memory),
        "",
        f"{versions}, Python {platform.python_version()}, 1 thread per process.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    output = parser.parse_args().output
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as parent:
        root = Path(parent)
        directions = differences(root)
        whole, killed, two = (root / name for name in ("whole", "killed", "two"))
        rows = [
            timed("one process", lambda: on_one(directions, whole), None, whole),
            timed("killed twice, resumed", lambda: killed_twice(directions, killed), whole, killed),
            timed("torchrun, two processes", lambda: on_two(directions, two), whole, two),
        ]
    memory = [
        memory_row(256, 1024, "400MiB", "eigenvalues,k=256"),
        memory_row(256, 1024, "400MiB", "spectrum"),
        memory_row(512, 2048, "600MiB", "eigenvalues,k=512"),
        memory_row(512, 2048, "600MiB", "eigenvalues,k=8"),
    ]
    text = page(rows, memory)
    print(text, end="")
    if output is not None:
        output.write_text(text, encoding="utf-8")
    if any(row.equal == "NO" for row in rows) or any(float(m[5]) > float(m[3]) for m in memory):
        raise SystemExit("a claim does not hold: see the table")


if __name__ == "__main__":
    main()
