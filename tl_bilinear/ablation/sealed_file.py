"""One safetensors file, everything but its tensors as JSON in the metadata, under a seal.

The seal is a digest of all of it: a file that was damaged on its way is refused, instead of putting
other numbers into a model. It is no signature: whoever changes a file on purpose can seal it anew.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tl_bilinear.checkpoints.error import CheckpointError, one_line
from tl_bilinear.checkpoints.json_file import parse_json
from tl_bilinear.optimisation.files import replace_file

NOTES = "tl_bilinear"
VERSION = 2  # 1 had no seal


def write_sealed(
    path: Path, form: str, notes: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write one file, whole or not at all; one of the same form that is there is replaced.

    Raises:
        CheckpointError: a file of another kind at that place, or one that cannot be written.
        ValueError: notes with a number that is not finite.
    """
    try:
        foreign = path.exists() and _notes(path).get("format") != form
    except CheckpointError:
        foreign = True
    if foreign:
        raise CheckpointError(
            f"{path} is there and holds something else than {form}, and is left as it is: give "
            "another place"
        )
    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    told = {"format": form, "version": VERSION, **notes}
    # One entry: safetensors writes several in an order that changes from run to run.
    sealed = json.dumps({**told, "seal": _seal(told, kept)}, allow_nan=False)
    try:
        replace_file(path, save(kept, {NOTES: sealed}))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written ({one_line(error)})") from None


def read_sealed(path: Path, form: str, writer: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Notes and tensors of a file of `write_sealed`.

    Args:
        form: what the file is to be.
        writer: what writes such files, for the message.

    Raises:
        CheckpointError: a file that cannot be read, is of another form, or was damaged.
    """
    notes = _notes(path)
    if notes.get("format") != form:
        raise CheckpointError(f"{path} holds no {form}: {writer} writes those")
    if notes.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has version {notes.get('version')!r} of the format of {form}, and version "
            f"{VERSION} is read here: write it again with {writer}, or open it with the "
            "tl_bilinear that wrote it"
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path} cannot be read ({one_line(error)})") from None
    seal = notes.pop("seal", None)
    if seal != _seal(notes, tensors):
        raise CheckpointError(
            f"{path} is damaged: its contents are not what {writer} wrote. Fetch the file again"
        )
    return notes, tensors


def _notes(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            notes = parse_json((file.metadata() or {}).get(NOTES, "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({one_line(error)})") from None
    return notes if isinstance(notes, dict) else {}


def _seal(notes: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(notes, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
