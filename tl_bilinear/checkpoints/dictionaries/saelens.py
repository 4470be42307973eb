"""The SAELens layout: cfg.json and sae_weights.safetensors.

    z = act((x - b_dec [apply_b_dec_to_input]) W_enc + b_enc)        x^ = z W_dec + b_dec

W_enc [d_in, d_sae], b_enc, W_dec [d_sae, d_in], b_dec; `threshold` for jumprelu. The hook's name
stands at the top of cfg.json (SAELens to version 5) or in its "metadata" or "meta". With
`rescale_acts_by_decoder_norm` activations are multiplied by their decoder row's norm and divided
by it when decoded: both are folded into the weights here.
"""

from pathlib import Path
from typing import Any

from tl_bilinear.checkpoints.dictionaries.files import read_tensors
from tl_bilinear.checkpoints.error import CheckpointError
from tl_bilinear.checkpoints.json_file import read_json
from tl_bilinear.dictionary import Activation, Dictionary

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
KNOWN: dict[str, Activation] = {
    "standard": "relu",
    "relu": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
}
ADVICE = {
    "batchtopk": " (SAELens' save_inference_model writes it as jumprelu)",
    "matryoshka_batchtopk": " (SAELens' save_inference_model writes it as jumprelu)",
}


def read(folder: Path, source: str) -> Dictionary:
    """The dictionary of a folder.

    Raises:
        CheckpointError: damaged files, or an architecture, an activation or a normalisation
            that is not known, by its name.
    """
    path = folder / CONFIG
    config = read_json(path)
    activation = _activation(path, config)
    _refuse(path, config)
    needed = ("W_enc", "W_dec", "b_dec") + (("threshold",) if activation == "jumprelu" else ())
    tensors = read_tensors(folder / WEIGHTS, needed)
    encoder, decoder = tensors["W_enc"], tensors["W_dec"]
    bias = tensors.get("b_enc", encoder.new_zeros(encoder.shape[-1]))
    if config.get("rescale_acts_by_decoder_norm"):
        norms = decoder.norm(dim=-1)
        encoder, bias, decoder = encoder * norms, bias * norms, decoder / norms[:, None]
    try:
        found = Dictionary(
            encoder=encoder,
            encoder_bias=bias,
            decoder=decoder,
            decoder_bias=tensors["b_dec"],
            activation=activation,
            hook_name=_hook_name(config),
            source=source,
            k=_k(path, config) if activation == "topk" else None,
            threshold=tensors["threshold"] if activation == "jumprelu" else None,
            centres_input=bool(config.get("apply_b_dec_to_input", True)),
        )
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    stated = {"d_in": found.d_in, "d_sae": found.n_features}
    wrong = {key: config[key] for key, size in stated.items() if config.get(key, size) != size}
    if wrong:
        raise CheckpointError(f"{path} says {wrong}, but the weights have {stated}")
    return found


def contents(dictionary: Dictionary, model_name: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """cfg.json and the tensors of a dictionary in this layout.

    Raises:
        CheckpointError: an activation that SAELens has no name for.
    """
    if dictionary.activation == "topk-signed":
        raise CheckpointError(
            'SAELens has no "topk-signed": its top-k cuts negative activations off. Save a '
            'dataclasses.replace(dictionary, activation="topk") if that is what you mean'
        )
    names = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu"}
    config: dict[str, Any] = {
        "architecture": names[dictionary.activation],
        "d_in": dictionary.d_in,
        "d_sae": dictionary.n_features,
        "dtype": str(dictionary.encoder.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.centres_input,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": dictionary.hook_name, "model_name": model_name},
    }
    tensors = {
        "W_enc": dictionary.encoder,
        "b_enc": dictionary.encoder_bias,
        "W_dec": dictionary.decoder,
        "b_dec": dictionary.decoder_bias,
    }
    if dictionary.k is not None:
        config |= {"k": dictionary.k, "rescale_acts_by_decoder_norm": False}
    if dictionary.threshold is not None:
        tensors["threshold"] = dictionary.threshold
    return config, {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _activation(path: Path, config: dict[str, Any]) -> Activation:
    name = str(config.get("architecture", "standard"))
    if name not in KNOWN:
        raise CheckpointError(
            f"{path}: the architecture {name!r} is not known{ADVICE.get(name, '')}: expected one "
            f"of {sorted(KNOWN)}"
        )
    # To version 5 the activation of a "standard" dictionary has a field of its own.
    function = str(config.get("activation_fn_str") or config.get("activation_fn") or "relu")
    if name == "standard" and function == "topk":
        return "topk"
    if function not in ("relu", name):
        raise CheckpointError(f"{path}: the activation {function!r} is not known (relu, topk)")
    return KNOWN[name]


def _refuse(path: Path, config: dict[str, Any]) -> None:
    plain = {
        "normalize_activations": (None, "none"),
        "reshape_activations": (None, "none"),
        "finetuning_scaling_factor": (None, False),
        "hook_head_index": (None,),
    }
    for key, allowed in plain.items():
        if config.get(key) not in allowed:
            raise CheckpointError(
                f"{path}: {key} is {config[key]!r}, so the dictionary reads something else than "
                f"its hook's values: only {allowed[-1]!r} can be read; fold it in with SAELens"
            )


def _k(path: Path, config: dict[str, Any]) -> int:
    arguments = config.get("activation_fn_kwargs") or {}
    k = config.get("k", arguments.get("k") if isinstance(arguments, dict) else None)
    if not isinstance(k, int) or isinstance(k, bool):
        raise CheckpointError(f"{path}: a topk dictionary needs a whole number `k`, got {k!r}")
    return k


def _hook_name(config: dict[str, Any]) -> str:
    for place in (config, config.get("metadata"), config.get("meta")):
        if isinstance(place, dict) and isinstance(place.get("hook_name"), str):
            return place["hook_name"]
    return ""
