"""`load`: a bundled name, a local folder or a hub id into a TransformerLens model."""

from pathlib import Path
from typing import Any

import torch

from tl_bilinear.checkpoints.bundled import bundled_folder, bundled_models
from tl_bilinear.checkpoints.folder import CheckpointError, read_folder
from tl_bilinear.checkpoints.hub import hub_folder, is_hub_id
from tl_bilinear.hosts.boot import HostName, boot
from tl_bilinear.hosts.freezing import freeze_gates_
from tl_bilinear.hosts.self_check import self_check


def load(
    name: str | Path,
    *,
    host: HostName = "auto",
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    check: bool = True,
    frozen_gates: bool = False,
) -> Any:
    """A bilinear transformer as a TransformerLens model, weights as stored.

    Args:
        name: a bundled name (`tl_bilinear.bundled_models()`), a local folder, or a hub id
            ("tdooms/fw-medium"), which is taken from the local Hugging Face cache or fetched
            into it. A folder of that name comes first.
        host: "auto" (HookedTransformer on TransformerLens 3.9, TransformerBridge on 4.x),
            "hooked_transformer" or "transformer_bridge".
        dtype: as stored where it is None.
        device: a torch device string.
        check: run `self_check`, transformers' own forward pass as the reference. Without it a
            model that is not bilinear is returned as the ordinary model that it is.
        frozen_gates: take a gated model (SiLU, GELU or ReLU gates) as well, with its own
            activation, to be read on prompts: what needs its MLPs as tensors takes the gates'
            slopes act(g)/g from the forward pass and says so (`freeze_gates_`). A bilinear
            model is loaded as without it.

    Raises:
        CheckpointError: a folder that is damaged or does not match its configuration, a name
            that is unknown or cannot be fetched.
        NotBilinearError: a model that is not bilinear, with the layer and the way out.
        ValueError: an unknown host; with `frozen_gates` a gate whose slope is not known.
    """
    folder, shown = _folder(name)
    transformers_model, tokenizer = read_folder(folder, dtype, device)
    transformers_model.config.name_or_path = shown
    expected = _reference(transformers_model) if check else None
    model = boot(transformers_model, tokenizer, shown, host)
    if frozen_gates:
        freeze_gates_(model)
    if check:
        self_check(model, reference=expected)
    return model


def _folder(name: str | Path) -> tuple[Path, str]:
    """The folder to read, and what results are to call the model: its folder or hub id."""
    folder = bundled_folder(str(name)) or Path(name)
    if folder.is_dir():
        return folder, str(folder)
    if isinstance(name, str) and is_hub_id(name):
        return hub_folder(name), name
    raise CheckpointError(
        f"{str(name)!r} is neither a bundled model {list(bundled_models())}, nor a folder, nor a "
        "hub id (owner/name)"
    )


def _reference(transformers_model: Any) -> Any:
    """Logits of the transformers model, taken before a bridge wraps its modules.

    The bridge changes the module in place, so what is compared is a copy of the original's
    modules. Its weights are the same memory: booting changes none.
    """
    import copy

    tensors = [*transformers_model.parameters(), *transformers_model.buffers()]
    original = copy.deepcopy(transformers_model, {id(tensor): tensor for tensor in tensors})
    return lambda tokens: original(tokens).logits
