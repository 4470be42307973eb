"""Several processes on one folder: torchrun's ranks together, strangers kept apart.

Ranks meet in the folder alone: each takes every WORLD_SIZE-th chunk, and rank 0 writes the
manifest before and the index after. So a folder that several machines share is enough, and a
sweep that was begun with one number of processes is resumed with any other.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tl_bilinear.sweeps.error import SweepError
from tl_bilinear.sweeps.manifest import MANIFEST

PAUSE = 0.1
"""Seconds between two looks into the folder."""


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is; `local` of them are on this machine."""

    rank: int
    size: int
    local: int


def process_ranks() -> Ranks:
    """As torchrun says it in RANK, WORLD_SIZE and LOCAL_WORLD_SIZE; one process without it.

    Raises:
        ValueError: variables that contradict each other.
    """
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None and size is None:
        return Ranks(0, 1, 1)
    try:
        found = Ranks(int(rank or ""), int(size or ""), 1)
        local = int(os.environ.get("LOCAL_WORLD_SIZE") or found.size)
        if 0 <= found.rank < found.size and 1 <= local <= found.size:
            return Ranks(found.rank, found.size, local)
    except ValueError:
        pass
    raise ValueError(
        f"RANK={rank} and WORLD_SIZE={size} do not fit: start the sweep with torchrun, or unset "
        "them"
    )


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Rank 0's hold on a sweep; the system lets go of it when the process ends, however it does.

    Where there are no locks (some network folders) a second process does the same work again:
    nothing is damaged, since files appear whole and hold the same bits.

    Raises:
        SweepError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(folder / MANIFEST, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SweepError(
                f"another process is at work on the sweep in {folder}: wait for it, or give "
                "another folder"
            ) from None
        except OSError:
            pass
        yield


def failure_path(folder: Path, rank: int) -> Path:
    return folder / f"failed-rank-{rank}.txt"


def wait_for(
    left: Callable[[], int], what: str, folder: Path, patience: float, since: float
) -> None:
    """Wait until `left()` is 0; the patience starts anew whenever it falls.

    Raises:
        SweepError: a rank that says (after `since`) that it failed, or nothing new in
            `patience` seconds.
    """
    fewest, last = left(), time.monotonic()
    while fewest:
        failed = next(
            (path for path in folder.glob("failed-rank-*.txt") if _newer(path, since)), None
        )
        if failed is not None:
            raise SweepError(
                f"{failed.stem.replace('failed-', '').replace('-', ' ')} failed: "
                f"{failed.read_text(encoding='utf-8').strip()}. What is finished is safe: the "
                "same command resumes"
            )
        if time.monotonic() - last > patience:
            raise SweepError(
                f"waited {patience:.0f} s for {what}, of which {fewest} are missing: another rank "
                "has stopped. What is finished is safe: the same command resumes"
            )
        time.sleep(PAUSE)
        now = left()
        if now < fewest:
            fewest, last = now, time.monotonic()


def _newer(path: Path, since: float) -> bool:
    try:
        return path.stat().st_mtime >= since
    except FileNotFoundError:
        return False
