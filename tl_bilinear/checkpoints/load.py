"""`load`: a bundled name or a local folder into a TransformerLens model."""

from pathlib import Path
from typing import Any

import torch

from tl_bilinear.checkpoints.bundled import bundled_folder, bundled_models
from tl_bilinear.checkpoints.folder import CheckpointError, read_folder
from tl_bilinear.hosts.boot import HostName, boot
from tl_bilinear.hosts.self_check import self_check


def load(
    name: str | Path,
    *,
    host: HostName = "auto",
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    check: bool = True,
) -> Any:
    """A bilinear transformer as a TransformerLens model, weights as stored.

    Args:
        name: a bundled name (`tl_bilinear.bundled_models()`) or a local Hugging Face folder.
        host: "auto" (HookedTransformer on TransformerLens 3.9, TransformerBridge on 4.x),
            "hooked_transformer" or "transformer_bridge".
        dtype: as stored where it is None.
        device: a torch device string.
        check: run `self_check`, transformers' own forward pass as the reference. Without it a
            model that is not bilinear is returned as the ordinary model that it is.

    Raises:
        CheckpointError: a folder that is damaged or does not match its configuration.
        NotBilinearError: a model that is not bilinear, with the layer and the way out.
        ValueError: an unknown name or host.
    """
    folder = _folder(name)
    transformers_model, tokenizer = read_folder(folder, dtype, device)
    expected = _reference(transformers_model) if check else None
    model = boot(transformers_model, tokenizer, str(folder), host)
    if check:
        self_check(model, reference=expected)
    return model


def _folder(name: str | Path) -> Path:
    folder = bundled_folder(str(name)) or Path(name)
    if not folder.is_dir():
        raise CheckpointError(
            f"{str(name)!r} is neither a bundled model {list(bundled_models())} nor a folder. "
            "For a model on the hub, download it first "
            "(huggingface_hub.snapshot_download) and give the folder"
        )
    return folder


def _reference(transformers_model: Any) -> Any:
    """Logits of the transformers model, taken before a bridge wraps its modules.

    The bridge changes the module in place, so what is compared is a copy of the original.
    """
    import copy

    original = copy.deepcopy(transformers_model)
    return lambda tokens: original(tokens).logits
