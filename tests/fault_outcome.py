"""What a fault raises, and what it leaves behind."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from damage import llama

import tl_bilinear as tlb
from tl_bilinear.checkpoints.error import CheckpointError


@dataclass(frozen=True)
class Fault:
    name: str
    damage: Callable[[Path], Any]
    """Damages the folder in place."""
    words: str
    """What the message must say, as a regular expression."""
    error: type[ValueError] = CheckpointError
    make: Callable[[Path], Path] = llama
    target: Callable[[Path], Any] = lambda folder: folder
    """What is given to `load`; the folder unless it says otherwise."""
    options: dict[str, Any] = field(default_factory=dict)
    attempt: Callable[..., Any] = tlb.load


@dataclass(frozen=True)
class Outcome:
    fault: Fault
    error: BaseException | None
    """None where a model was returned."""
    written: tuple[str, ...]
    """Files that appeared, vanished or changed, in the folder, around it and in the temporary
    folder."""
    changed: tuple[str, ...]
    """Global state of torch that is another one afterwards."""

    @property
    def line(self) -> str:
        return str(self.error).replace("\n", " ")


def outcome(fault: Fault, root: Path, monkeypatch: Any) -> Outcome:
    """Damage a fresh checkpoint under `root`, try to load it, and look at what is left."""
    for name in ("files", "tmp", "cache"):
        (root / name).mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(root / "tmp"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root / "cache"))
    folder = fault.make(root / "files")
    fault.damage(folder)
    before, state = listing(root), torch_state()
    error: BaseException | None = None
    try:
        fault.attempt(fault.target(folder), **fault.options)
    except Exception as raised:
        error = raised
    after = listing(root)
    written = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    changed = {key for key, value in torch_state().items() if value != state[key]}
    return Outcome(fault, error, tuple(sorted(written)), tuple(sorted(changed)))


def listing(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every path; links are not followed."""
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        time = 0 if path.is_dir() and not path.is_symlink() else status.st_mtime_ns
        found[str(path.relative_to(root))] = (status.st_size, time)
    return found


def torch_state() -> dict[str, Any]:
    from transformers.utils import logging

    return {
        "default dtype": torch.get_default_dtype(),
        "default device": str(torch.get_default_device()),
        "gradients": torch.is_grad_enabled(),
        "progress bars": logging.is_progress_bar_enabled(),
        "open files": len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0,
    }
