"""Hub ids ("tdooms/fw-medium") to local folders, through huggingface_hub and its cache.

HF_HUB_OFFLINE, HF_HOME and HF_TOKEN act as they do everywhere. Only the files that loading
reads are fetched: no code, no training states, torch files only where there are no safetensors.
"""

import re
from pathlib import Path

from tl_bilinear.checkpoints.error import CheckpointError, one_line
from tl_bilinear.checkpoints.own_format import WEIGHTS

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
TOKENIZER = ("config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json")
MODEL = (*TOKENIZER, "generation_config.json")
SAFETENSORS = ("model*.safetensors", "model.safetensors.index.json", WEIGHTS)
TORCH = ("pytorch_model*.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth")


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/repository."""
    return _ID.fullmatch(name) is not None


def hub_folder(hub_id: str, revision: str | None = None) -> Path:
    """The folder of a model's files in the local cache, fetched where they are not there yet.

    Args:
        revision: a branch, a tag or a commit; the repository's main branch where it is None.

    Raises:
        CheckpointError: the hub cannot be reached and the cache lacks the model, or there is
            no such model, or none of its files can be loaded.
    """
    folder = _snapshot(hub_id, (*MODEL, *SAFETENSORS), revision)
    if not any(folder.glob("*model*.safetensors")):
        folder = _snapshot(hub_id, (*MODEL, *TORCH), revision)
    weights = [path for pattern in (*SAFETENSORS, *TORCH) for path in folder.glob(pattern)]
    if not weights or not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{hub_id} in {folder} lacks {'weights' if not weights else 'config.json'}: the "
            "repository holds no model that can be loaded, or only part of it is in the cache; "
            "load it once with a connection (HF_HUB_OFFLINE=0)"
        )
    return folder


def hub_tokenizer_folder(hub_id: str) -> Path:
    """The folder of a tokenizer's files in the local cache.

    Raises:
        CheckpointError: as `hub_folder`.
    """
    return _snapshot(hub_id, TOKENIZER)


def hub_files(hub_id: str, paths: tuple[str, ...]) -> Path:
    """The local folder of a repository, with those of some named files that it has.

    Raises:
        CheckpointError: as `hub_folder`.
    """
    return _snapshot(hub_id, paths, ignored=None)


def _snapshot(
    hub_id: str,
    patterns: tuple[str, ...],
    revision: str | None = None,
    ignored: tuple[str, ...] | None = ("*/*",),
) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=None if ignored is None else list(ignored),
            )
        )
    # Refused, unknown, offline, no proxy, half in the cache: the hub's own classes for these
    # share no parent, and a reader needs the same advice for all of them.
    except Exception as error:
        at = "" if revision is None else f" at revision {revision!r}"
        raise CheckpointError(
            f"{hub_id!r}{at} is not in the local Hugging Face cache, and could not be fetched "
            f"({one_line(error)}). Check the name; connect and set "
            "HF_HUB_OFFLINE=0, or give a local folder with the model's files"
        ) from None
