"""The public packed checkpoints, by name, for `HookedTransformer.from_pretrained`."""

from pathlib import Path
from typing import Any

import torch

from tl_bilinear import hosts
from tl_bilinear.checkpoints.config_file import read_config
from tl_bilinear.checkpoints.error import CheckpointError
from tl_bilinear.checkpoints.folder import read_folder, require_finite
from tl_bilinear.checkpoints.hub import hub_folder, hub_tokenizer_folder
from tl_bilinear.checkpoints.layouts import find_layout
from tl_bilinear.checkpoints.placement import Placement
from tl_bilinear.checkpoints.weight_files import open_weights

# As their authors name them in code and papers; not every one could be looked at.
PACKED = tuple(
    f"tdooms/{name}"
    for name in (
        "ts-medium",
        "ts-medium-v2",
        "ts-medium-swiglu",
        "ts-large",
        "ts-small-test2",
        "fw-nano",
        "fw-tiny",
        "fw-tiny-v2",
        "fw-tiny-old",
        "fw-small",
        "fw-small-finetune",
        "fw-medium",
    )
)


def register() -> None:
    """Register bilinear MLPs with TransformerLens. Idempotent.

    - `act_fn="bilinear"` with `gated_mlp=True` in a HookedTransformerConfig (3.9) builds a
      `BilinearMLP`; in a TransformerBridgeConfig for `boot_native` it builds a bilinear bridge.
    - A bridge of a transformers model whose built gate activation is the identity gets
      `BilinearMLPBridge`, which stays bilinear in compatibility mode. Other activations are
      left alone.
    - TransformerLens' weight processing of such models is exact, or raises `FoldingError`.
    - `HookedTransformer.from_pretrained` (3.9) takes the public packed checkpoints, such as
      "tdooms/fw-medium", from the local Hugging Face cache or fetched into it.

    Raises:
        ValueError: later, from HookedTransformer, for act_fn="bilinear" without gated_mlp.
    """
    hosts.register()
    if hosts.has_hooked_transformer():
        from tl_bilinear.hosts.official_names import Checkpoints, add_official_names

        add_official_names(Checkpoints(PACKED, outline_packed, read_packed))


def read_packed(hub_id: str, dtype: torch.dtype) -> Any:
    """A packed checkpoint as a transformers model, on the CPU.

    Raises:
        CheckpointError: what is wrong, where, and what to do.
    """
    folder = hub_folder(hub_id)
    model = read_folder(folder, read_config(folder), dtype, Placement("cpu"))[0]
    require_finite(folder, model.state_dict())
    return model


def outline_packed(hub_id: str) -> tuple[Any, str | None]:
    """The same without weights, and its tokenizer's folder (None without one).

    Raises:
        CheckpointError: as `read_packed`.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = hub_folder(hub_id)
    config, shapes = read_config(folder), open_weights(folder).shapes
    layout = find_layout(config, shapes.keys())
    if layout is None:
        raise CheckpointError(
            f"{hub_id} in {folder} is not in the packed layout: load it with tl_bilinear.load"
        )
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**layout.settings(config, shapes)))
    return model, _tokenizer(folder, layout.tokenizer_id(config))


def _tokenizer(folder: Path, elsewhere: str | None) -> str | None:
    if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return str(folder)
    if elsewhere is None:
        return None
    # A folder, not the hub id: offline transformers wants more files of a repository than a
    # tokenizer has.
    try:
        return str(hub_tokenizer_folder(elsewhere))
    except CheckpointError:
        return None  # reading the weights, which comes next, warns
