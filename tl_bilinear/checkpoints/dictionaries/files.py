"""The weights of a stored dictionary: safetensors, nothing else."""

from pathlib import Path

import torch
from torch import Tensor

from tl_bilinear.checkpoints.error import CheckpointError


def read_tensors(path: Path, needed: tuple[str, ...]) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU, as stored.

    Raises:
        CheckpointError: there is no such file, it is damaged, one of `needed` is missing, or
            one holds whole numbers or numbers that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        others = sorted(
            p.name for p in path.parent.glob("*") if p.suffix in (".pt", ".bin", ".pth")
        )
        found = f" (only {', '.join(others)}, which is not opened)" if others else ""
        raise CheckpointError(
            f"{path.parent} has no {path.name}{found}: dictionaries are read from safetensors"
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({error}): the file is cut or damaged, fetch "
            "it again"
        ) from None
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise CheckpointError(f"{path} lacks {missing}: it holds {sorted(tensors)[:8]}")
    for name, tensor in tensors.items():
        if not tensor.dtype.is_floating_point:
            raise CheckpointError(f"{path}: {name} is stored as {tensor.dtype}, not as numbers")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} has entries that are not finite: damaged")
    return tensors
