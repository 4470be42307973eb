"""One safetensors file per finished chunk, which carries its own digest."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tl_bilinear.sweeps.chunks import Chunk
from tl_bilinear.sweeps.manifest import write_durably

NOTES = "tl_bilinear"


def shard_path(folder: Path, chunk: Chunk) -> Path:
    return folder / f"layer{chunk.layer:03d}-{chunk.start:08d}.safetensors"


def write_shard(folder: Path, chunk: Chunk, tensors: dict[str, Tensor], sweep: str) -> None:
    """Write a chunk's tensors, whole or not at all.

    Args:
        sweep: the manifest's id, so that a file of another sweep is not taken for this one's.

    Raises:
        OSError: no room, or no permission; what is finished stays as it is.
    """
    path = shard_path(folder, chunk)
    kept = {
        name: value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    # One entry: safetensors writes several in an order that changes from run to run.
    written = {"sweep": sweep, "chunk": str(chunk), "sha256": _digest(kept)}
    content = save(kept, {NOTES: json.dumps(written)})
    try:
        write_durably(path, content)
    except OSError as error:
        raise OSError(
            f"{path} could not be written ({error.strerror or error}): finished chunks are safe; "
            "make room and run the same command again, which resumes"
        ) from error


def shard_fault(folder: Path, chunk: Chunk, sweep: str) -> str | None:
    """Why a shard cannot be used; None where it is whole. Reads all of it."""
    try:
        with safe_open(shard_path(folder, chunk), framework="pt") as file:
            written = json.loads((file.metadata() or {}).get(NOTES, "{}"))
            if written.get("sweep") != sweep or written.get("chunk") != str(chunk):
                return "of another sweep"
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            if any(len(value) != chunk.stop - chunk.start for value in tensors.values()):
                return "of another length"
            if _digest(tensors) != written.get("sha256"):
                return "changed since it was written"
    except (SafetensorError, OSError, ValueError) as error:
        return f"damaged ({error})"
    return None


def read_shard(folder: Path, chunk: Chunk, names: set[str] | None = None) -> dict[str, Tensor]:
    """Some or all tensors of a chunk, in the order of their names."""
    with safe_open(shard_path(folder, chunk), framework="pt") as file:
        wanted = [name for name in sorted(file.keys()) if names is None or name in names]
        return {name: file.get_tensor(name) for name in wanted}


def shard_shapes(folder: Path, chunk: Chunk) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(dtype, shape behind the directions) of each tensor, from the file's header alone."""
    with safe_open(shard_path(folder, chunk), framework="pt") as file:
        parts = {name: file.get_slice(name) for name in sorted(file.keys())}
        return {
            name: (part.get_dtype(), tuple(part.get_shape()[1:])) for name, part in parts.items()
        }


def _digest(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        if value.numel():
            found.update(value.contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()
