"""What a sweep is of: written before anything is computed, compared when it is resumed."""

import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.hosts.provenance import provenance
from tl_bilinear.sweeps.chunks import Chunk, chunks_of
from tl_bilinear.sweeps.computation import AbstractComputation
from tl_bilinear.sweeps.directions import Directions
from tl_bilinear.sweeps.error import SweepError

MANIFEST = "manifest.json"
LABELS = "directions.json"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    content: dict[str, Any]

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(self.content["layers"])

    @property
    def n_directions(self) -> int:
        return self.content["directions"]["count"]

    @property
    def chunk(self) -> int:
        return self.content["chunk"]

    @property
    def id(self) -> str:
        """Sixteen hex digits, carried by every shard and by the index."""
        text = json.dumps(self.content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def chunks(self) -> tuple[Chunk, ...]:
        """Every chunk, in the order of layers and directions."""
        return chunks_of(self.layers, self.n_directions, self.chunk)

    def require_same(self, other: "Manifest", folder: Path) -> None:
        """Raise SweepError, with what differs, unless `other` is the same sweep."""
        mine, theirs = _flat(self.content), _flat(other.content)
        differs = [
            f"{name} (there {mine.get(name)!r}, now {theirs.get(name)!r})"
            for name in dict.fromkeys([*mine, *theirs])
            if mine.get(name) != theirs.get(name)
        ]
        if differs:
            raise SweepError(
                f"{folder} holds another sweep: {', '.join(differs[:6])} differ"
                f"{'s' if len(differs) == 1 else ''}. Give another folder, or the same settings"
            )


def make_manifest(
    host: AbstractHost,
    computation: AbstractComputation,
    directions: Directions,
    layers: Sequence[int],
    dtype: torch.dtype,
    *,
    chunk: int,
    threads: int,
) -> Manifest:
    """Everything that decides the bits of the result, as far as it is known."""
    arguments = computation.arguments
    source = provenance(host, directions.folded(host, layers), str(arguments.get("gauge", "none")))
    content = {
        "format": FORMAT,
        "model": source.model,
        "fingerprint": source.fingerprint,
        "weights": _digest(host, layers),
        "host": source.host,
        "computation": {"name": computation.name, "arguments": arguments},
        "layers": list(layers),
        "directions": {
            "source": directions.source,
            "count": len(directions),
            "space": directions.space,
            "folded": list(source.frozen),
            "digest": directions.digest(),
        },
        "dtype": str(dtype).removeprefix("torch."),
        "chunk": chunk,
        "threads": threads,
        "device": _device(host.device),
        "versions": source.versions,
    }
    return Manifest(json.loads(json.dumps(content)))


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a sweep's folder; None where there is none.

    Raises:
        SweepError: one that cannot be read, or was written by another version of the format.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest(content)
        _ = manifest.layers, manifest.n_directions, manifest.chunk
        if content["format"] != FORMAT:
            raise SweepError(
                f"{path} is of format {content['format']}, and this version reads {FORMAT}"
            )
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, SweepError):
            raise
        raise SweepError(f"{path} is damaged ({error}): start the sweep in a new folder") from None
    return manifest


def create_manifest(folder: Path, manifest: Manifest) -> None:
    """Make the folder a sweep's; of several processes that try, one does.

    Raises:
        FileExistsError: there is a manifest already.
        OSError: the folder cannot be written.
    """
    content = (json.dumps(manifest.content, indent=2) + "\n").encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / MANIFEST, content, replace=False)
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(
            f"the folder {folder} cannot be written ({error.strerror or error}): give another"
        ) from error


def write_labels(folder: Path, labels: Sequence[str]) -> None:
    """One label per direction, where they are not there yet."""
    if not (folder / LABELS).exists():
        write_durably(folder / LABELS, json.dumps(list(labels)).encode())


def is_own_beginning(path: Path) -> bool:
    """Whether a file may have been left by a sweep that was killed before it had a manifest."""
    return path.name.endswith(".unfinished") or path.name.startswith("failed-rank-")


def read_labels(folder: Path) -> tuple[str, ...]:
    """The label of every direction."""
    try:
        return tuple(json.loads((folder / LABELS).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise SweepError(
            f"{folder / LABELS} cannot be read ({error}): start the sweep in a new folder"
        ) from None


def write_durably(path: Path, content: bytes, replace: bool = True) -> None:
    """A file whole or not at all, and on the disk before this returns.

    Raises:
        FileExistsError: the file exists, and `replace` is False.
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.unfinished")
    try:
        with open(unfinished, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(unfinished, path)
        else:
            os.link(unfinished, path)
        sync_folder(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """The folder's entries onto the disk, where the system lets folders be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def _digest(host: AbstractHost, layers: Sequence[int]) -> str:
    """Of every entry of the swept tensors, where the fingerprint takes a sample."""
    found = hashlib.sha256()
    for layer in layers:
        tensor = host.mlp_tensor(layer)
        for factor in (tensor.left, tensor.right, tensor.out):
            found.update(factor.cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.backends.cpu.get_cpu_capability()}"


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
