"""One safetensors file, everything but its tensors as JSON in the metadata, under a seal.

The seal is a digest of all of it: a file that was damaged on its way is refused, instead of putting
other numbers into a model. It is no signature: whoever changes a file on purpose can seal it anew.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from tl_bilinear.checkpoints.error import CheckpointError, one_line
from tl_bilinear.checkpoints.json_file import parse_json
from tl_bilinear.optimisation.files import replace_file

NOTES = "tl_bilinear"
VERSION = 2  # 1 had no seal
Made = TypeVar("Made")


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


def read_sealed(
    path: Path,
    form: str,
    writer: str,
    make: Callable[[dict[str, Any], dict[str, Tensor]], Made],
) -> Made:
    """What `make` makes of the notes and tensors of a file of `write_sealed`.

    Args:
        form: what the file is to be.
        writer: what writes such files, for the message.

    Raises:
        CheckpointError: a file that cannot be read, is of another form, was damaged, or of which
            nothing can be made.
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
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({one_line(error)})") from None
    seal = notes.pop("seal", None)
    if seal != _seal(notes, tensors):
        raise CheckpointError(
            f"{path} is damaged: its contents are not what {writer} wrote. Fetch the file again"
        )
    try:
        return make(notes, tensors)
    # Sealed by somebody else: keys that lack, huge numbers, dtypes that torch cannot look at.
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} holds no {form} that can be read ({one_line(error)}): fetch the file again, "
            f"or write it again with {writer}"
        ) from None


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
