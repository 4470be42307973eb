"""Whether a checkpoint fits into memory, before it is read."""

import os
from pathlib import Path

import torch

from tl_bilinear.checkpoints.error import CheckpointError
from tl_bilinear.checkpoints.weight_files import WeightFiles

MEMINFO = Path("/proc/meminfo")
GIB = 2**30


def require_memory(weights: WeightFiles, dtype: torch.dtype | None) -> None:
    """Refuse a checkpoint whose weights alone are larger than the available memory.

    A lower bound: converting and checking need up to three more copies for a moment. Nothing
    is checked on systems that do not tell how much memory they have.

    Raises:
        CheckpointError: with both numbers.
    """
    available = available_bytes()
    needed = sum(
        torch.Size(stored.shape).numel() * (dtype or stored.dtype).itemsize
        for stored in weights.tensors.values()
    )
    if available is None or needed <= available:
        return
    raise CheckpointError(
        f"{weights.folder} needs at least {needed / GIB:.1f} GiB for its weights in "
        f"{str(dtype or weights.dtype).removeprefix('torch.')}, and {available / GIB:.1f} GiB of "
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
