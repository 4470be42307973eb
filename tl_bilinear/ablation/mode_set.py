"""Modes of one model as one file: what is saved, shared and loaded.

A safetensors file: `directions` and `eigenvectors`, one row per mode, and everything else as JSON
in its metadata. The model's fingerprint goes with the modes, because lambda (v.x)^2 along u is
part of that model alone.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, overload

import torch
from torch import Tensor

from tl_bilinear.ablation.sealed_file import read_sealed, write_sealed
from tl_bilinear.decompositions import Mode
from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.provenance import Provenance, provenance

FORMAT = "tl_bilinear modes"


@dataclass(frozen=True, eq=False)
class ModeSet(Sequence[Mode]):
    """Modes, the model that they are part of, and how they were found."""

    modes: tuple[Mode, ...]
    provenance: Provenance
    found: str
    """How the modes were found, in words; empty where nobody said."""

    @property
    def fingerprint(self) -> str:
        """Of the model that the modes are part of."""
        return self.provenance.fingerprint

    def __len__(self) -> int:
        return len(self.modes)

    @overload
    def __getitem__(self, index: int) -> Mode: ...
    @overload
    def __getitem__(self, index: slice) -> "ModeSet": ...
    def __getitem__(self, index: int | slice) -> "Mode | ModeSet":
        """One mode, which nothing checks, or a set of some, of the same model."""
        return (
            replace(self, modes=self.modes[index])
            if isinstance(index, slice)
            else self.modes[index]
        )

    def __iter__(self) -> Iterator[Mode]:
        return iter(self.modes)

    def require_model(self, model: Any) -> None:
        """Raise ValueError, with both fingerprints, unless `model` is the modes' own.

        A model whose weights were edited, folded or rounded to another dtype is another one.
        """
        _require_own(get_host(model), self.provenance)


def _require_own(host: AbstractHost, came: Provenance) -> None:
    now = provenance(host, (), "none")
    if now.fingerprint != came.fingerprint:
        raise ValueError(
            f"these modes are of {came.model} (fingerprint {came.fingerprint}), and "
            f"this model is {now.model} (fingerprint {now.fingerprint}): in other weights "
            "they are no modes. Load the model that they were taken from (as it was then: "
            "before edits, in its dtype), or find modes of this one. list(modes) are the bare "
            "modes, which nothing checks"
        )


def chosen_modes(host: AbstractHost, modes: Mode | Sequence[Mode]) -> list[Mode]:
    """The modes that an edit was given, checked; where they say what model they are of, that too.

    Raises:
        ValueError: none, or modes that this model cannot have.
    """
    from tl_bilinear.ablation.layer_edit import require_modes

    came = getattr(modes, "provenance", None)  # of a ModeSet, or of what find_modes gives
    if came is not None:
        _require_own(host, came)
    several = isinstance(modes, Iterable) and not isinstance(modes, Mode)
    chosen: list[Any] = list(cast(Iterable, modes)) if several else [modes]
    if not chosen:
        raise ValueError("`modes` is empty: give at least one mode to ablate")
    for mode in chosen:
        if not isinstance(mode, Mode):
            pair = isinstance(mode, tuple) and mode and isinstance(mode[0], Mode)
            raise ValueError(
                "`modes` must be a Mode, several of them, or what load_modes or find_modes gives, "
                f"got {'a pair of a Mode and a number' if pair else type(mode).__name__}"
                + (": give [mode for mode, _ in ...]" if pair else "")
            )
    require_modes(host, chosen)
    return chosen


def save_modes(
    path: str | Path, modes: Mode | Sequence[Mode], model: Any, *, found: str = ""
) -> Path:
    """Write modes of a model to one file, whole or not at all; numbers come back bit for bit.

    Args:
        path: the file, by custom *.safetensors; modes that are there are replaced.
        model: the model that the modes were taken from.
        found: how they were found, in words.

    Raises:
        ValueError: no mode, or modes that this model cannot have.
        CheckpointError: a file that cannot be written, or something else at its place.
    """
    host, path = get_host(model), Path(path)
    chosen = chosen_modes(host, modes)
    dtypes = {t.dtype for mode in chosen for t in (mode.direction, mode.eigenvector)}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float64

    def rows(name: str) -> Tensor:
        return torch.stack([getattr(mode, name).detach().cpu().to(dtype) for mode in chosen])

    notes = {
        "provenance": vars(provenance(host, (), "none")),
        "found": found or getattr(modes, "found", ""),
        "modes": [
            {"layer": mode.layer, "eigenvalue": float(mode.eigenvalue), "label": mode.label}
            for mode in chosen
        ],
    }
    tensors = {name: rows(name[:-1]) for name in ("directions", "eigenvectors")}
    write_sealed(path, FORMAT, notes, tensors)
    return path


def load_modes(path: str | Path, model: Any = None) -> ModeSet:
    """Read modes from a file of `save_modes`.

    Args:
        model: if given, it must be the one that the modes are part of.

    Raises:
        CheckpointError: a file that cannot be read, or is no file of modes.
        ValueError: modes of another model; both fingerprints are named.
    """
    found = read_sealed(Path(path), FORMAT, "save_modes", _made)
    if model is not None:
        found.require_model(model)
    return found


def _made(notes: dict[str, Any], tensors: dict[str, Tensor]) -> ModeSet:
    directions, vectors = tensors["directions"], tensors["eigenvectors"]
    rows = zip(notes["modes"], directions, vectors, strict=True)
    modes = tuple(
        Mode(row["layer"], u, float(row["eigenvalue"]), v, str(row["label"])) for row, u, v in rows
    )
    whole = bool(directions.isfinite().all() and vectors.isfinite().all())
    whole &= all(math.isfinite(m.eigenvalue) and type(m.layer) is int for m in modes)
    if not modes or not whole or directions.ndim != 2 or vectors.ndim != 2:
        raise ValueError("no modes, or numbers that are not finite")
    written = notes["provenance"]
    came = Provenance(**{**written, "frozen": tuple(written["frozen"])})
    return ModeSet(modes, came, str(notes["found"]))
