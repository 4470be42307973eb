"""Hub ids ("tdooms/fw-medium") to local folders, through huggingface_hub and its cache.

HF_HUB_OFFLINE, HF_HOME and HF_TOKEN act as they do everywhere. Only the files that loading
reads are fetched: no code, no training states, torch files only where there are no safetensors.
"""

import re
from pathlib import Path

from tl_bilinear.checkpoints.error import CheckpointError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
TOKENIZER = ("config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json")
MODEL = (*TOKENIZER, "generation_config.json")
SAFETENSORS = ("model*.safetensors", "model.safetensors.index.json")
TORCH = ("pytorch_model*.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth")


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/repository."""
    return _ID.fullmatch(name) is not None


def hub_folder(hub_id: str) -> Path:
    """The folder of a model's files in the local cache, fetched where they are not there yet.

    Raises:
        CheckpointError: the hub cannot be reached and the cache lacks the model, or there is
            no such model, or none of its files can be loaded.
    """
    folder = _snapshot(hub_id, (*MODEL, *SAFETENSORS))
    if not any(folder.glob("model*.safetensors")):
        folder = _snapshot(hub_id, (*MODEL, *TORCH))
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
    hub_id: str, patterns: tuple[str, ...], ignored: tuple[str, ...] | None = ("*/*",)
) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                hub_id,
                allow_patterns=list(patterns),
                ignore_patterns=None if ignored is None else list(ignored),
            )
        )
    # Refused, unknown, offline, no proxy, half in the cache: the hub's own classes for these
    # share no parent, and a reader needs the same advice for all of them.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{hub_id!r} is not in the local Hugging Face cache, and could not be fetched "
            f"({type(error).__name__}: {reason}). Check the name; connect and set "
            "HF_HUB_OFFLINE=0, or give a local folder with the model's files"
        ) from error
