"""Our own format, for what no transformers class can hold. docs/format.md describes it.

A folder with config.json, tl_model.safetensors and the tokenizer's files. config.json's
model_type is one that transformers does not know, and the weights are not called
model.safetensors, so that transformers refuses the folder instead of reading half of it.
"""

import json
import types
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args, get_origin

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_bilinear.checkpoints.error import CheckpointError
from tl_bilinear.checkpoints.weight_files import WeightFiles
from tl_bilinear.hosts import get_host
from tl_bilinear.hosts.self_check import TOLERANCES
from tl_bilinear.hosts.settings import Settings
from tl_bilinear.hosts.to_plain import PlainModel

MODEL_TYPE = "tl_bilinear"
VERSION = 1
WEIGHTS = "tl_model.safetensors"
FIELDS = (
    "model_type",
    "format_version",
    "saved_from",
    "written_by",
    "dtype",
    "settings",
    "reference",
)
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCES}
HOSTS = ("HookedTransformer", "TransformerBridge")
REFERENCE_LENGTH = 12


def is_own_format(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == MODEL_TYPE


def write_own_format(plain: PlainModel, reference: dict[str, list], folder: Path) -> None:
    """config.json and the weights, into a folder that exists.

    Args:
        reference: `reference_of` the model that is saved.
    """
    from safetensors.torch import save_file

    config = {
        "model_type": MODEL_TYPE,
        "format_version": VERSION,
        "saved_from": plain.kind,
        "written_by": ", ".join(
            f"{package} {version(package)}" for package in ("tl_bilinear", "transformer_lens")
        ),
        "dtype": str(plain.state["embed.W_E"].dtype).removeprefix("torch."),
        "settings": asdict(plain.settings),
        "reference": reference,
    }
    text = json.dumps(config, indent=2, allow_nan=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    state = {name: value.cpu() for name, value in plain.state.items()}
    save_file(state, folder / WEIGHTS, {"format": MODEL_TYPE})


def reference_of(model: Any, settings: Settings) -> dict[str, list]:
    """The `reference` entry: tokens, each position's most likely next token, and its
    log-probability in nats."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, min(REFERENCE_LENGTH, settings.n_ctx))
    tokens = torch.randint(settings.d_vocab, shape, generator=generator)
    best = _log_probabilities(model, tokens).max(-1)
    return {
        "tokens": tokens[0].tolist(),
        "next_tokens": best.indices.tolist(),
        "log_probabilities": best.values.tolist(),
    }


def require_reference(folder: Path, model: Any, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError where a loaded model does not compute what the saved one did."""
    reference = config["reference"]
    coarser = max(TOLERANCES[get_host(model).dtype], TOLERANCES[DTYPES[config["dtype"]]])
    limit = 10 * coarser
    found = _log_probabilities(model, torch.tensor([reference["tokens"]]))
    next_tokens = torch.tensor(reference["next_tokens"])[:, None]
    expected = torch.tensor(reference["log_probabilities"], dtype=torch.float64)
    difference = float((found.gather(-1, next_tokens)[:, 0] - expected).abs().max())
    if not difference <= limit:
        raise CheckpointError(
            f"{folder}: the loaded model's log-probabilities differ from those that it was saved "
            f"with by {difference:.1e} (allowed {limit:.0e}): config.json or the weights were "
            "changed by hand, or this TransformerLens computes something else. If the change is "
            "meant, load it with check=False and save it again"
        )


def _log_probabilities(model: Any, tokens: Int[Tensor, "1 pos"]) -> Float[Tensor, "pos d_vocab"]:
    logits, _ = get_host(model).read(tokens, ())
    return logits[0].double().log_softmax(-1).cpu()


def read_settings(path: Path, config: Mapping[str, Any]) -> Settings:
    """The settings in a config.json of ours, each field checked.

    Raises:
        CheckpointError: another version, an unknown, missing or mistyped field.
    """
    found = config.get("format_version")
    if type(found) is not int or found != VERSION:
        raise CheckpointError(
            f"{path}: format_version is {found!r}, and this tl_bilinear reads {VERSION}: "
            "install the tl_bilinear that wrote the folder (written_by: "
            f"{config.get('written_by')!r})"
        )
    _require_fields(path, "", config, FIELDS)
    for name, known in {"saved_from": HOSTS, "dtype": tuple(DTYPES)}.items():
        if config[name] not in known:
            raise CheckpointError(f"{path}: {name} is {config[name]!r}, not one of {list(known)}")
    values = config["settings"]
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: settings is no JSON object: write the folder again")
    kinds = {field.name: field.type for field in fields(Settings)}
    _require_fields(path, "settings.", values, tuple(kinds))
    for name, kind in kinds.items():
        if not _fits(values[name], kind):
            raise CheckpointError(
                f"{path}: settings.{name} is {values[name]!r}, expected {_spelt(kind)}: "
                "write the folder again"
            )
    types_ = values["attn_types"]
    values = {**values, "attn_types": None if types_ is None else tuple(types_)}
    try:
        settings = Settings(**values)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}. Write the folder again") from None
    _require_reference_entry(path, config["reference"], settings)
    return settings


def read_own_format(
    config: Mapping[str, Any], settings: Settings, weights: WeightFiles, dtype: torch.dtype | None
) -> PlainModel:
    """The plain model; shapes and memory have been checked."""
    target = dtype or weights.dtype
    state = {name: weights.read(name).to(target) for name in settings.shapes()}
    return PlainModel(settings, state, config["saved_from"])


def _require_fields(path: Path, at: str, found: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = [at + name for name in found if name not in known]
    missing = [at + name for name in known if name not in found]
    if unknown or missing:
        raise CheckpointError(
            f"{path}: unknown fields {unknown[:4]}, missing fields {missing[:4]}: version "
            f"{VERSION} of this format has exactly the fields of docs/format.md, and what is not "
            "known could change what the model computes. Write the folder again"
        )


def _require_reference_entry(path: Path, reference: Any, settings: Settings) -> None:
    size = min(REFERENCE_LENGTH, settings.n_ctx)
    bounds = {"tokens": settings.d_vocab, "next_tokens": settings.d_vocab_out}
    right = isinstance(reference, dict) and set(reference) == {*bounds, "log_probabilities"}
    right = right and all(
        isinstance(values, list) and len(values) == size for values in reference.values()
    )
    right = right and all(
        type(value) is int and 0 <= value < bound
        for name, bound in bounds.items()
        for value in reference[name]
    )
    if not right or not all(type(value) is float for value in reference["log_probabilities"]):
        raise CheckpointError(
            f"{path}: reference must hold {size} tokens, next_tokens and log_probabilities within "
            "the vocabulary: write the folder again"
        )


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_fits(value, option) for option in get_args(kind))
    if kind is types.NoneType:
        return value is None
    if get_origin(kind) is tuple:
        return isinstance(value, list) and all(type(item) is str for item in value)
    if kind is float:
        return type(value) in (int, float) and abs(value) < float("inf")
    return type(value) is kind


def _spelt(kind: Any) -> str:
    return str(getattr(kind, "__name__", kind) if not isinstance(kind, types.UnionType) else kind)
