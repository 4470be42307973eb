"""Files written whole or not at all, and fingerprints that say what a file belongs to."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def replace_file(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` through a temporary file: readers see the old file or the new."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(target: str | Path) -> Iterator[Path]:
    """Give a temporary folder to write in; on leaving, its files become those of `target`.

    A target that is not there, or is empty, appears whole. In one that holds files each new file
    replaces the one of its name, and the others stay. After an error, or a kill while writing, the
    target is as it was.
    """
    target = Path(target)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # what a killed run left
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if target.is_dir() and any(target.iterdir()):
            for path in sorted(each for each in temporary.rglob("*") if each.is_file()):
                place = target / path.relative_to(temporary)
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)
        else:
            temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def fingerprint_parameters(model: nn.Module) -> str:
    """Return the first 16 hex digits of the sha256 over names and values of all parameters."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        values = parameter.detach().cpu().contiguous()
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def fingerprint_tokens(tokens: Int[Tensor, " n_tokens"]) -> str:
    """Return the first 16 hex digits of the sha256 over the tokens as 64-bit integers."""
    values = tokens.detach().cpu().long().contiguous().numpy()
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]


def fingerprint_rows(rows: Float[Tensor, "row width"]) -> str:
    """Sixteen hex digits of every number of a matrix, its shape and its dtype."""
    digest = hashlib.sha256(str((tuple(rows.shape), rows.dtype)).encode())
    digest.update(rows.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def fingerprint_settings(settings: object) -> str:
    """Return the first 8 hex digits of the sha256 over a frozen dataclass's printout."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def sha256_of_file(path: str | Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
