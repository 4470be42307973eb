"""`load`: a bundled name, a local folder or a hub id into a TransformerLens model."""

from pathlib import Path
from typing import Any

import torch

from tl_bilinear.checkpoints.bundled import bundled_folder, bundled_models
from tl_bilinear.checkpoints.config_file import read_config
from tl_bilinear.checkpoints.folder import (
    CheckpointError,
    read_folder,
    read_plain,
    require_finite,
)
from tl_bilinear.checkpoints.hub import hub_folder, is_hub_id
from tl_bilinear.checkpoints.own_format import is_own_format, require_reference
from tl_bilinear.checkpoints.placement import DeviceMap, Placement, placement
from tl_bilinear.hosts.boot import HostName, boot, require_host_name
from tl_bilinear.hosts.freezing import freeze_gates_
from tl_bilinear.hosts.from_plain import boot_plain
from tl_bilinear.hosts.self_check import self_check


def load(
    name: str | Path,
    *,
    host: HostName = "auto",
    dtype: torch.dtype | None = None,
    device: str | None = None,
    check: bool = True,
    frozen_gates: bool = False,
    revision: str | None = None,
    device_map: DeviceMap | None = None,
) -> Any:
    """A bilinear transformer as a TransformerLens model, weights as stored.

    Args:
        name: a bundled name (`tl_bilinear.bundled_models()`), a local folder, or a hub id
            ("tdooms/fw-medium"), which is taken from the local Hugging Face cache or fetched
            into it. A folder of that name comes first.
        host: "auto" (HookedTransformer on TransformerLens 3.9, TransformerBridge on 4.x),
            "hooked_transformer" or "transformer_bridge". A folder of our own format
            (docs/format.md) goes by "auto" into the class that it was saved from, where
            this TransformerLens has it.
        dtype: as stored where it is None.
        device: a torch device string, "cpu" where it is None.
        check: look for NaN in the weights and run `self_check`, transformers' own forward pass
            as the reference (for our own format the log-probabilities that were stored with the
            model). Without it a model that is not bilinear is returned as the ordinary model
            that it is, and nothing is read of its weights that booting does not read.
        frozen_gates: take a gated model (SiLU, GELU or ReLU gates) as well, with its own
            activation, to be read on prompts: what needs its MLPs as tensors takes the gates'
            slopes act(g)/g from the forward pass and says so (`freeze_gates_`). A bilinear
            model is loaded as without it.
        revision: of a hub id: a branch, a tag or a commit.
        device_map: instead of `device`: one device ("cpu", 0, {"": "cpu"}), on either host, or
            "auto", which is the GPU where there is one and the CPU else. Over several GPUs a
            TransformerBridge of a transformers model is spread by transformers (by accelerate);
            a HookedTransformer and a native bridge are refused. Tested on the CPU only.

    Raises:
        CheckpointError: a folder that is damaged or does not match its configuration, a name
            that is unknown or cannot be fetched.
        NotBilinearError: a model that is not bilinear, with the layer and the way out.
        ValueError: an unknown host, a device that is not there, `device` beside `device_map`,
            weights on "meta" or "disk", a revision of what is no hub id; with `frozen_gates` a
            gate whose slope is not known.
    """
    require_host_name(host)
    where = placement(device, device_map)
    folder, shown = _folder(name, revision)
    config = read_config(folder)
    if is_own_format(config):
        return _load_own_format(folder, shown, config, host, dtype, where, check)
    if host == "hooked_transformer":
        where.require_single("HookedTransformer", 'use host="transformer_bridge"')
    transformers_model, tokenizer = read_folder(folder, config, dtype, where)
    transformers_model.config.name_or_path = shown
    if check:
        require_finite(folder, transformers_model.state_dict())
    expected = _reference(transformers_model) if check else None
    if host == "auto" and where.device_map is not None:
        host = "transformer_bridge"
    model = boot(transformers_model, tokenizer, shown, host)
    if frozen_gates:
        freeze_gates_(model)
    if check:
        self_check(model, reference=expected)
    return model


def _load_own_format(
    folder: Path,
    shown: str,
    config: dict[str, Any],
    host: HostName,
    dtype: torch.dtype | None,
    where: Placement,
    check: bool,
) -> Any:
    where.require_single("natively built model", "give one device")
    plain, tokenizer = read_plain(folder, config, dtype)
    if check:
        require_finite(folder, plain.state)
    model = boot_plain(plain, tokenizer, shown, host, where.device)
    if check:
        self_check(model)
        require_reference(folder, model, config)
    return model


def _folder(name: str | Path, revision: str | None) -> tuple[Path, str]:
    """The folder to read, and what results are to call the model: its folder or hub id."""
    bundled = bundled_folder(str(name))
    folder = bundled or Path(name)
    if revision is not None and (folder.is_dir() or not is_hub_id(str(name))):
        kind = "a bundled model" if bundled else "a folder" if folder.is_dir() else "no hub id"
        raise ValueError(
            f"`revision` {revision!r} was given, but {str(name)!r} is {kind}: only hub ids "
            "(owner/name) have revisions; leave it out"
        )
    if folder.is_dir():
        return folder, str(folder)
    if folder.exists():
        raise CheckpointError(f"{folder} is a file: give the folder that it lies in")
    if isinstance(name, str) and is_hub_id(name):
        return hub_folder(name, revision), name
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
