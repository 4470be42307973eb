"""config.json, and the kinds of model that are refused by it before any weight is opened."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl_bilinear.checkpoints.error import CheckpointError
from tl_bilinear.checkpoints.json_file import read_json

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers")


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        CheckpointError: no such file, no JSON object, a key that stands twice, or a model with
            experts, quantised weights or an encoder.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no config.json: give a folder written by save_pretrained"
        )
    config = read_json(path)
    _refuse(path, config)
    return config


def _refuse(path: Path, config: dict[str, Any]) -> None:
    experts = [key for key in EXPERTS if config.get(key)]
    if experts:
        raise CheckpointError(
            f"{path}: a mixture of experts ({experts[0]} {config[experts[0]]}) is not one tensor "
            "per layer: which expert acts depends on the token. Give a dense model"
        )
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise CheckpointError(
            f"{path}: the weights are quantised ({method}), and rounded integers are no weights "
            "to decompose: use the checkpoint in float32, bfloat16 or float16"
        )
    if config.get("is_encoder_decoder"):
        raise CheckpointError(
            f"{path}: an encoder-decoder ({config.get('model_type')}) is no causal language "
            "model: give a decoder-only model"
        )


def require_as_many_layers(folder: Path, config: Mapping[str, Any], tensors: int) -> None:
    """Refuse a number of layers that the files cannot hold, before anything of that size is made.

    Raises:
        CheckpointError: fewer than one layer, or more layers than stored tensors.
    """
    settings = config.get("settings")
    for found in (config, settings if isinstance(settings, dict) else {}):
        for name in LAYERS:
            count = found.get(name)
            if type(count) is int and not 0 < count <= tensors:
                raise CheckpointError(
                    f"{folder / 'config.json'}: {name} is {count}, and the weight files hold "
                    f"{tensors} tensors: correct config.json, or fetch the weights again"
                )
