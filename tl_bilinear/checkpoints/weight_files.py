"""The weight files of a folder: safetensors or torch files, single or in shards.

Shapes are known without reading the numbers. Torch files are pickles: they are opened with
`weights_only=True`, which builds tensors and executes nothing.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_bilinear.checkpoints.error import CheckpointError

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
TORCH = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.pt",
    "model.pth",
)
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """One tensor of one file, not yet read."""

    path: Path
    shape: Shape
    dtype: torch.dtype
    mapped: Tensor | None
    """The tensor itself where its file is a torch file, mapped into memory."""


@dataclass(frozen=True, eq=False)
class WeightFiles:
    """What a folder stores, by name."""

    folder: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]

    @property
    def are_safetensors(self) -> bool:
        return self.files[0].suffix == ".safetensors"

    @property
    def shapes(self) -> dict[str, Shape]:
        return {name: stored.shape for name, stored in self.tensors.items()}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most of the stored numbers."""
        count: dict[torch.dtype, int] = {}
        for stored in self.tensors.values():
            size = torch.Size(stored.shape).numel()
            count[stored.dtype] = count.get(stored.dtype, 0) + size
        return max(count, key=lambda dtype: count[dtype])

    def read(self, name: str) -> Tensor:
        """A tensor's numbers, as stored, on the CPU: a copy that no file backs."""
        from safetensors import safe_open

        stored = self.tensors[name]
        if stored.mapped is not None:
            return stored.mapped.detach().clone(memory_format=torch.contiguous_format)
        with safe_open(stored.path, framework="pt") as file:
            return file.get_tensor(name)


def open_weights(folder: Path) -> WeightFiles:
    """The folder's weight files, safetensors before torch files, headers read and checked.

    Raises:
        CheckpointError: no weights, a missing or damaged file, a pickle that holds anything
            but tensors, an index that points out of the folder, a name that two shards hold.
    """
    files = _files(folder)
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        opened = _open_safetensors(path) if path.suffix == ".safetensors" else _open_torch(path)
        twice = [name for name in opened if name in tensors]
        if twice:
            raise CheckpointError(
                f"{twice[0]} is in {tensors[twice[0]].path.name} and in {path.name}: nobody can "
                f"tell which one counts; write {folder} again"
            )
        tensors |= opened
    if not tensors:
        raise CheckpointError(f"{files[0]} holds no tensor: fetch or write it again")
    whole = [name for name, stored in tensors.items() if not stored.dtype.is_floating_point]
    if whole:
        raise CheckpointError(
            f"{folder}: {whole[0]} is stored as {tensors[whole[0]].dtype}: quantised weights "
            "cannot be read; use the checkpoint in float32, bfloat16 or float16"
        )
    return WeightFiles(folder, files, tensors)


def _files(folder: Path) -> tuple[Path, ...]:
    for name in (*SAFETENSORS, *TORCH):
        path = folder / name
        if path.is_file():
            return _shards(path) if name.endswith(".index.json") else (path,)
    raise CheckpointError(
        f"{folder} has no {SAFETENSORS[0]} (nor {', '.join((*SAFETENSORS[1:], *TORCH))}): save "
        "the model with save_pretrained"
    )


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is no index of shards ({type(error).__name__}: {error}): fetch it again"
        ) from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or name == "..":
            raise CheckpointError(
                f"{index} names the file {name!r}, which is not one inside its own folder: the "
                "index is wrong or malicious; it is not followed"
            )
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise CheckpointError(f"{index.parent} lacks the shards {missing}: fetch them")
    return tuple(index.parent / name for name in names)


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    from safetensors import SafetensorError, safe_open

    found: dict[str, StoredTensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (safe_open is no dict)
                part = file.get_slice(name)
                dtype = _DTYPES.get(part.get_dtype(), torch.uint8)
                found[name] = StoredTensor(path, tuple(part.get_shape()), dtype, None)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({error}): the file is cut or damaged"
            f"{_first_lost(path)}, fetch or write it again"
        ) from None
    return found


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def _first_lost(path: Path) -> str:
    """ ", from NAME on": the first tensor that a cut file no longer holds, if it can be told.

    A safetensors file is the header's length (8 bytes), a JSON header with each tensor's
    offsets, and the data.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(start - 8, size)))
            ends = {key: entry["data_offsets"][1] for key, entry in header.items() if key[0] != "_"}
        except (ValueError, KeyError, TypeError, AttributeError):
            return ""
    lost = [
        key for key, end in sorted(ends.items(), key=lambda item: item[1]) if start + end > size
    ]
    return f", from {lost[0]} on" if lost else ""


def _open_torch(path: Path) -> dict[str, StoredTensor]:
    state = _unpickled(path)
    if not isinstance(state, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(state).__name__}, not a state dict: save "
            "model.state_dict() with torch.save, or use save_pretrained"
        )
    other = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if other:
        raise CheckpointError(
            f"{path} is not a plain state dict: {str(other[0])!r} holds a "
            f"{type(state[other[0]]).__name__}, not a tensor. Save the model's state dict alone"
        )
    return {
        str(name): StoredTensor(path, tuple(value.shape), value.dtype, value)
        for name, value in state.items()
    }


def _unpickled(path: Path) -> Any:
    """The pickle's value, tensors only; files from before torch 1.6 cannot be mapped."""
    with suppress(Exception):  # whatever this meant, the second reading says it
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
        raise CheckpointError(
            f"{path} is not a torch file of tensors alone ({type(error).__name__}: {reason}): "
            "it is damaged, or it would run code, which is never done. Fetch it again, or save "
            "the model with save_pretrained, which writes safetensors"
        ) from None
