"""`load_dictionary`: a bundled name, a local folder or a hub id into a Dictionary."""

from pathlib import Path

import torch

from tl_bilinear.checkpoints.bundled import ZOO
from tl_bilinear.checkpoints.dictionaries import saelens, scope
from tl_bilinear.checkpoints.error import CheckpointError
from tl_bilinear.checkpoints.hub import hub_files, is_hub_id
from tl_bilinear.dictionary import Dictionary

BUNDLED = ZOO / "dictionaries"
FILES = (saelens.CONFIG, saelens.WEIGHTS, scope.CONFIG, scope.WEIGHTS)


def bundled_dictionaries() -> tuple[str, ...]:
    """Names that `load_dictionary` knows without a folder, in alphabetical order."""
    return tuple(sorted(path.parent.name for path in BUNDLED.glob(f"*/{saelens.CONFIG}")))


def load_dictionary(
    name: str | Path,
    subfolder: str = "",
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> Dictionary:
    """A sparse dictionary, from safetensors in the SAELens or the *-scope layout.

    Args:
        name: a bundled name (`bundled_dictionaries()`), a local folder, or a hub id, which is
            taken from the local Hugging Face cache or fetched into it.
        subfolder: the dictionary's folder inside, such as "12-mlp-out-x8-k30" of
            "tdooms/fw-medium-scope".
        dtype: as stored where it is None, but at least float32: what was stored in half
            precision encodes exactly what its numbers say.

    Raises:
        CheckpointError: an unknown name, damaged or missing files, another layout, or a
            dictionary of a kind that is not known.
    """
    folder, shown = _folder(name, subfolder)
    layouts = [layout for layout in (saelens, scope) if (folder / layout.CONFIG).is_file()]
    if not layouts:
        inside = sorted(path.name for path in folder.iterdir() if path.is_dir())[:8]
        raise CheckpointError(
            f"{folder} has neither {saelens.CONFIG} (SAELens) nor {scope.CONFIG} (*-scope)"
            + (f"; it has the folders {inside}: name one as `subfolder`" if inside else "")
        )
    found = layouts[0].read(folder, shown)
    return found.to(device, dtype or torch.promote_types(found.encoder.dtype, torch.float32))


def _folder(name: str | Path, subfolder: str) -> tuple[Path, str]:
    """The folder to read, and what results are to call it."""
    parts = Path(subfolder).parts
    if Path(subfolder).is_absolute() or ".." in parts:
        raise CheckpointError(f"`subfolder` {subfolder!r} leads out of its folder")
    root = BUNDLED / name if str(name) in bundled_dictionaries() else Path(name)
    if root.is_dir():
        folder = root / subfolder
        if not folder.is_dir():
            raise CheckpointError(f"{root} has no folder {subfolder!r}")
        return folder, str(folder) if root == Path(name) else str(name)
    if isinstance(name, str) and is_hub_id(name):
        patterns = tuple("/".join((*parts, file)) for file in FILES)
        return hub_files(name, patterns) / subfolder, "/".join((name, *parts))
    raise CheckpointError(
        f"{str(name)!r} is neither a bundled dictionary {list(bundled_dictionaries())}, nor a "
        "folder, nor a hub id (owner/name)"
    )
