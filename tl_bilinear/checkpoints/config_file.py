"""config.json, and the kinds of model that are refused by it before any weight is opened."""

import json
from pathlib import Path
from typing import Any

from tl_bilinear.checkpoints.error import CheckpointError

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        CheckpointError: no such file, no JSON object, or a model with experts, quantised
            weights or an encoder.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no config.json: give a folder written by save_pretrained"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}): fetch the file again") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds no JSON object: fetch the file again")
    _refuse(path, config)
    return config


def _refuse(path: Path, config: dict[str, Any]) -> None:
    experts = [key for key in EXPERTS if config.get(key)]
    if experts:
        raise CheckpointError(
            f"{path}: a mixture of experts ({experts[0]} {config[experts[0]]}) is not one tensor "
            "per layer: which expert acts depends on the token. Give a dense model"
        )
    if config.get("quantization_config"):
        method = dict(config["quantization_config"]).get("quant_method", "unknown method")
        raise CheckpointError(
            f"{path}: the weights are quantised ({method}), and rounded integers are no weights "
            "to decompose: use the checkpoint in float32, bfloat16 or float16"
        )
    if config.get("is_encoder_decoder"):
        raise CheckpointError(
            f"{path}: an encoder-decoder ({config.get('model_type')}) is no causal language "
            "model: give a decoder-only model"
        )
