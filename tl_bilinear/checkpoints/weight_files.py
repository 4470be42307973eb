"""The weight files of a folder: safetensors or torch files, single or in shards.

Shapes are known without reading the numbers. Torch files are pickles: they are opened with
`weights_only=True`, which builds tensors and executes nothing.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_bilinear.checkpoints.error import CheckpointError, one_line
from tl_bilinear.checkpoints.json_file import parse_json, read_json
from tl_bilinear.checkpoints.memory import available_bytes

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

    def size_as(self, dtype: torch.dtype | None) -> int:
        """Bytes of all tensors in a dtype, or as stored."""
        return sum(
            torch.Size(stored.shape).numel() * (dtype or stored.dtype).itemsize
            for stored in self.tensors.values()
        )

    def read(self, name: str) -> Tensor:
        """A tensor's numbers, as stored, on the CPU: a copy that no file backs."""
        from safetensors import SafetensorError, safe_open

        stored = self.tensors[name]
        if stored.mapped is not None:
            return stored.mapped.detach().clone(memory_format=torch.contiguous_format)
        try:
            with safe_open(stored.path, framework="pt") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{stored.path}: {name} cannot be read ({one_line(error)}): fetch it again"
            ) from None


def open_weights(folder: Path, only: str | None = None) -> WeightFiles:
    """The folder's weight files, safetensors before torch files, headers read and checked.

    Args:
        only: the one file to open, instead of those that transformers writes.

    Raises:
        CheckpointError: no weights, a missing or damaged file, a pickle that holds anything
            but tensors, an index that points out of the folder, a name that two shards hold.
    """
    first = _first(folder, (*SAFETENSORS, *TORCH) if only is None else (only,))
    indexed = first.name.endswith(".index.json")
    files = _shards(first) if indexed else (first,)
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
    if indexed:
        _require_as_indexed(first, tensors)
    if not tensors:
        raise CheckpointError(f"{files[0]} holds no tensor: fetch or write it again")
    return WeightFiles(folder, files, tensors)


def _first(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    others = f" (nor {', '.join(names[1:])})" if names[1:] else ""
    raise CheckpointError(
        f"{folder} has no {names[0]}{others}: save the model with save_pretrained"
    )


def _shards(index: Path) -> tuple[Path, ...]:
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        if Path(name).name != name or "\\" in name or name == "..":
            raise CheckpointError(
                f"{index} names the file {name!r}, which is not one inside its own folder: the "
                "index is wrong or malicious; it is not followed"
            )
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise CheckpointError(f"{index.parent} lacks the shards {missing}: fetch them")
    return tuple(index.parent / name for name in names)


def _weight_map(index: Path) -> dict[str, str]:
    """Which shard an index says holds which tensor."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise CheckpointError(
            f"{index} is no index of shards (no weight_map of names): fetch it again"
        )
    return found


def _require_as_indexed(index: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Every tensor in the shard that the index names, and no other."""
    weight_map = _weight_map(index)
    for name in [*weight_map, *tensors]:
        said = weight_map.get(name)
        held = tensors[name].path.name if name in tensors else None
        if said != held:
            raise CheckpointError(
                f"{index} says that {name} is in {said or 'no shard'}, and it is in "
                f"{held or 'no shard'}: the index and the shards do not belong together; fetch "
                "or write them again"
            )


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    from safetensors import SafetensorError, safe_open

    try:
        header = _header(path)
        # A file larger than memory cannot be mapped, and trying leaves it open; how much is
        # missing is said where its numbers are needed.
        available = available_bytes()
        if available is None or path.stat().st_size <= available:
            with safe_open(path, framework="pt"):
                pass  # every offset is checked here
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({error}): the file is cut or damaged"
            f"{_first_lost(path)}, fetch or write it again"
        ) from None
    found: dict[str, StoredTensor] = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise _not_floating(path, name, entry["dtype"])
        found[name] = StoredTensor(path, tuple(entry["shape"]), _DTYPES[entry["dtype"]], None)
    return found


def _header(path: Path) -> dict[str, dict[str, Any]]:
    """Each tensor's entry in a safetensors file: its length (8 bytes), then JSON.

    Read here as well because safetensors keeps one of two entries of the same name. Empty
    where there is no header; safetensors says so.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            return {}
        raw = file.read(size)
    try:
        header = parse_json(raw)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        known = all({"dtype", "shape", "data_offsets"} <= set(entry) for entry in entries.values())
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        known, entries, reason = False, {}, str(error)
    else:
        reason = "no entries of tensors"
    if not known:
        raise CheckpointError(
            f"{path} cannot be read as safetensors (header: {reason}): the file is cut or "
            "damaged; fetch or write it again"
        )
    return entries


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def _not_floating(path: Path, name: str, stored_as: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {name} is stored as {stored_as}: quantised weights cannot be read; use the "
        "checkpoint in float32, bfloat16 or float16"
    )


def _first_lost(path: Path) -> str:
    """ ", from NAME on": the first tensor that a cut file no longer holds, if it can be told."""
    try:
        header = _header(path)
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
        ends = {name: start + entry["data_offsets"][1] for name, entry in header.items()}
        size = path.stat().st_size
        lost = [name for name in sorted(ends, key=lambda name: ends[name]) if ends[name] > size]
    except (OSError, LookupError, TypeError):
        return ""
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
    for name, value in state.items():
        if value.dtype not in _DTYPES.values():
            raise _not_floating(path, str(name), str(value.dtype))
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
        reason = one_line(error)[:220]
        raise CheckpointError(
            f"{path} is not a torch file of tensors alone ({reason}): "
            "it is damaged, or it would run code, which is never done. Fetch it again, or save "
            "the model with save_pretrained, which writes safetensors"
        ) from None
