"""The layout of tdooms' *-scope repositories: config.json and model.safetensors.

    z = topk(w_enc (x - b_dec) [+ bias])        x^ = w_dec z + b_dec

`w_enc.weight` [n, d], `w_dec.weight` [d, n], `b_dec`; the k largest are kept as they are, without
a ReLU. config.json names the point and the layer: "mlp-in" is the output of the norm before the
MLP, gain and bias included (that of these models has neither).
"""

from pathlib import Path
from typing import Any

from tl_bilinear.checkpoints.dictionaries.files import read_tensors
from tl_bilinear.checkpoints.error import CheckpointError
from tl_bilinear.checkpoints.json_file import read_json
from tl_bilinear.dictionary import Dictionary

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HOOKS = {
    "resid-pre": "hook_resid_pre",
    "resid-mid": "hook_resid_mid",
    "resid-post": "hook_resid_post",
    "mlp-in": "mlp.hook_in",
    "mlp-out": "hook_mlp_out",
    "attn-out": "hook_attn_out",
}


def read(folder: Path, source: str) -> Dictionary:
    """The dictionary of a folder.

    Raises:
        CheckpointError: damaged files, an unknown point, a bilinear encoder, inputs that are
            normalised, or a target that is not the input.
    """
    path = folder / CONFIG
    config = read_json(path)
    point, k = _point(path, config.get("point")), config.get("k")
    _refuse(path, config)
    if not isinstance(k, int) or isinstance(k, bool):
        raise CheckpointError(f"{path}: a whole number `k` is needed, got {k!r}")
    tensors = read_tensors(folder / WEIGHTS, ("w_enc.weight", "w_dec.weight", "b_dec"))
    encoder = tensors["w_enc.weight"]
    try:
        return Dictionary(
            encoder=encoder.T.contiguous(),
            encoder_bias=tensors.get("w_enc.bias", encoder.new_zeros(encoder.shape[0])),
            decoder=tensors["w_dec.weight"].T.contiguous(),
            decoder_bias=tensors["b_dec"],
            activation="topk-signed",
            hook_name=point,
            source=source,
            k=k,
        )
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from None


def _point(path: Path, point: Any) -> str:
    if not isinstance(point, list) or len(point) != 2:
        raise CheckpointError(f"{path}: `point` must be [name, layer], got {point!r}")
    name, layer = str(point[0]).replace("_", "-"), point[1]
    if name not in HOOKS or not isinstance(layer, int):
        raise CheckpointError(f"{path}: the point {point!r} is not known: {sorted(HOOKS)}")
    return f"blocks.{layer}.{HOOKS[name]}"


def _refuse(path: Path, config: dict[str, Any]) -> None:
    if config.get("bilinear_encoder") or config.get("token_lookup"):
        raise CheckpointError(f"{path}: a bilinear encoder or a token lookup cannot be read")
    if config.get("normalize") is not None:
        raise CheckpointError(
            f"{path}: `normalize` is {config['normalize']!r}: the released code writes it and "
            "never applies it, so what this dictionary reads is not known"
        )
    if config.get("target") not in (None, config.get("point")):
        raise CheckpointError(
            f"{path}: it reconstructs {config['target']}, not its input {config['point']}: a "
            "transcoder is no dictionary of one space"
        )
