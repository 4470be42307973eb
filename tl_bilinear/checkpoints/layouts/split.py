"""Split layouts: files named as a Llama's, whose bilinear MLPs say left and right.

Every tensor but the MLPs' has its Llama name; config.json holds LlamaConfig's settings.
left * right is symmetric, so which of the two becomes the gate makes no difference.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from tl_bilinear.checkpoints.error import CheckpointError
from tl_bilinear.checkpoints.layouts.layout import AbstractLayout, Config, Read, Shape

LEFT = ("left", "left_proj", "w_left", "W_left")
RIGHT = ("right", "right_proj", "w_right", "W_right")
DOWN = ("down", "down_proj", "out", "out_proj", "w_out", "W_out", "w_down")
LLAMA = ("gate_proj", "up_proj")
IDENTITIES = (None, "linear", "identity", "bilinear")
MODEL_TYPES = (None, "llama", "bilinear", "bilinear_llama")
NEEDED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
)
NOT_SETTINGS = ("architectures", "auto_map", "model_type", "transformers_version")
_MLP = re.compile(r"model\.layers\.(\d+)\.mlp\.(\w+)\.(weight|bias)")


class SplitLayout(AbstractLayout):
    name = "split"
    described = "model.layers.0.mlp.left.weight and .right.weight among Llama names"

    def recognises(self, config: Config, names: Collection[str]) -> bool:
        used = _mlp_names(names)
        return bool(used & set(LEFT)) and bool(used & set(RIGHT))

    def settings(self, config: Config, shapes: Mapping[str, Shape]) -> dict[str, Any]:
        _require_known(config)
        renamed = _renamed(shapes)
        found = {key: value for key, value in config.items() if key not in NOT_SETTINGS}
        found.setdefault("tie_word_embeddings", "lm_head.weight" not in renamed.values())
        found.setdefault("attention_bias", any(".self_attn." in n and _bias(n) for n in shapes))
        found.setdefault("mlp_bias", any(".mlp." in n and _bias(n) for n in shapes))
        return {**found, "hidden_act": "linear"}

    def tokenizer_id(self, config: Config) -> str | None:
        return None

    def expected(self, config: Config, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """What the Llama itself will be asked for: `convert` only renames."""
        return dict(shapes)

    def convert(self, config: Config, names: Collection[str], read: Read) -> dict[str, Tensor]:
        return {new: read(old) for old, new in _renamed(names).items()}


def _bias(name: str) -> bool:
    return name.endswith(".bias")


def _mlp_names(names: Collection[str]) -> set[str]:
    return {match[2] for match in map(_MLP.fullmatch, names) if match}


def _renamed(names: Collection[str]) -> dict[str, str]:
    """Llama's name for each stored name.

    Raises:
        CheckpointError: where a part of the MLP has two names at once, or none that is known.
    """
    used = _mlp_names(names)
    parts = {"gate_proj": LEFT, "up_proj": RIGHT, "down_proj": DOWN}
    table: dict[str, str] = {}
    for part, known in parts.items():
        found = sorted(used & set(known))
        if len(found) != 1:
            raise CheckpointError(
                f"the MLPs' {part} should be stored under one name of {list(known)}, found "
                f"{found or sorted(used)}: the layout is ambiguous; rename the tensors"
            )
        table[found[0]] = part
    both = sorted(used & set(LLAMA))
    if both:
        raise CheckpointError(
            f"the MLPs hold {both} beside {sorted(table)}: which matrices count is ambiguous; "
            "remove or rename one kind"
        )

    def llama(name: str) -> str:
        match = _MLP.fullmatch(name)
        if match is None or match[2] not in table:
            return name
        return f"model.layers.{match[1]}.mlp.{table[match[2]]}.{match[3]}"

    return {name: llama(name) for name in names}


def _require_known(config: Config) -> None:
    missing = [key for key in NEEDED if not isinstance(config.get(key), int)]
    if missing:
        raise CheckpointError(
            f"config.json lacks {missing}: a split checkpoint needs LlamaConfig's settings"
        )
    act = config.get("hidden_act")
    if act not in IDENTITIES:
        raise CheckpointError(
            f"config.json: hidden_act is {act!r}, but left and right are multiplied as they are "
            'in a bilinear MLP: set "hidden_act": "linear", or name the matrices gate_proj and '
            "up_proj if it is a gated model"
        )
    if config.get("model_type") not in MODEL_TYPES:
        raise CheckpointError(
            f"config.json: model_type is {config['model_type']!r}, and split matrices are read "
            f"for {[name for name in MODEL_TYPES if name]} only: rename left, right and down to "
            "that class's own names"
        )


LAYOUT = SplitLayout()
