"""Whether a checkpoint fits into memory, before it is read."""

import os
from pathlib import Path

import torch

from tl_bilinear.checkpoints.error import CheckpointError

MEMINFO = Path("/proc/meminfo")
GIB = 2**30


def require_memory(folder: Path, needed: int, dtype: torch.dtype) -> None:
    """Refuse a checkpoint whose weights alone are larger than the available memory.

    A lower bound: converting and checking need up to three more copies for a moment. Nothing
    is checked on systems that do not tell how much memory they have.

    Args:
        needed: bytes of all weights in `dtype`.

    Raises:
        CheckpointError: with both numbers.
    """
    available = available_bytes()
    if available is None or needed <= available:
        return
    raise CheckpointError(
        f"{folder} needs at least {needed / GIB:.1f} GiB for its weights in "
        f"{str(dtype).removeprefix('torch.')}, and {available / GIB:.1f} GiB of "
        "memory are available: give dtype=torch.bfloat16, or use a larger machine"
    )


def available_bytes() -> int | None:
    """Memory that new work can take without swapping; None where the system does not say."""
    try:
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
