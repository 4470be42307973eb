"""Names that `HookedTransformer.from_pretrained` (TransformerLens 3.9) takes besides its own.

TransformerLens takes only names that it lists, their configuration from transformers or from
tables, and its own converters' weights. For the names given here all three are ours; every
other name runs upstream's code.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Checkpoints:
    """Where the models of some names come from; `hosts` itself reads no files."""

    names: tuple[str, ...]
    """Hub ids."""
    outline: Callable[[str], tuple[Any, str | None]]
    """A name to its transformers model without weights, and its tokenizer's folder."""
    read: Callable[[str, torch.dtype], Any]
    """A name and a dtype to its transformers model."""


_KNOWN: dict[str, Checkpoints] = {}
_ACCEPTED = {"torch_dtype", "trust_remote_code"}  # what from_pretrained may be given besides


def add_official_names(checkpoints: Checkpoints) -> None:
    """Make `HookedTransformer.from_pretrained` take these names too. Idempotent."""
    from transformer_lens import loading_from_pretrained as loading

    for name in checkpoints.names:
        _KNOWN[name.lower()] = checkpoints
        if name not in loading.OFFICIAL_MODEL_NAMES:
            loading.OFFICIAL_MODEL_NAMES.append(name)
    _wrap_(loading)


def _wrap_(loading: Any) -> None:
    config_of, state_of = loading.convert_hf_model_config, loading.get_pretrained_state_dict
    if getattr(config_of, "_tl_bilinear", False):
        return

    @functools.wraps(config_of)
    def convert_hf_model_config(model_name: str, **kwargs: Any) -> dict[str, Any]:
        known = _KNOWN.get(model_name.lower())
        if known is None:
            return config_of(model_name, **kwargs)
        _require_accepted(model_name, kwargs)
        return _settings(known, model_name)

    @functools.wraps(state_of)
    def get_pretrained_state_dict(
        official_model_name: str,
        cfg: Any,
        hf_model: Any | None = None,
        dtype: torch.dtype = torch.float32,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        known = _KNOWN.get(official_model_name.lower())
        if known is None:
            return state_of(official_model_name, cfg, hf_model, dtype, **kwargs)
        _require_accepted(official_model_name, kwargs)
        model = hf_model
        if model is None:
            model = known.read(official_model_name, kwargs.get("torch_dtype", dtype))
        return _state(model, cfg)

    convert_hf_model_config._tl_bilinear = True  # pyright: ignore[reportAttributeAccessIssue]
    loading.convert_hf_model_config = convert_hf_model_config
    loading.get_pretrained_state_dict = get_pretrained_state_dict


def _settings(known: Checkpoints, name: str) -> dict[str, Any]:
    from tl_bilinear.hosts.hooked import decoder_of

    model, tokenizer = known.outline(name)
    return {**decoder_of(model).settings(), "tokenizer_name": tokenizer}


def _state(model: Any, cfg: Any) -> dict[str, Float[Tensor, "..."]]:
    from tl_bilinear.hosts.hooked import decoder_of

    state = decoder_of(model).state()
    if cfg.normalization_type == "RMSPre":
        # from_pretrained(fold_ln=True) builds the model without gains: until they are folded
        # it would compute something else, and processing could not be checked.
        _fold_gains_(state, cfg.n_layers)
    return {name: value.to(cfg.dtype) for name, value in state.items()}


def _fold_gains_(state: dict[str, Tensor], n_layers: int) -> None:
    """Every norm's gain into the matrices that read through it; the gains become one."""
    readers = {"ln_final.w": ["unembed.W_U"]}
    for layer in range(n_layers):
        at = f"blocks.{layer}."
        attention = [f"{at}attn.{name}" for name in ("W_Q", "W_K", "W_V", "_W_K", "_W_V")]
        readers[at + "ln1.w"] = [name for name in attention if name in state]
        readers[at + "ln2.w"] = [at + "mlp.W_gate", at + "mlp.W_in"]
    for gain, matrices in readers.items():
        factor = state[gain].double()[:, None]
        for name in matrices:
            state[name] = (state[name].double() * factor).to(state[name])
        state[gain] = torch.ones_like(state[gain])


def _require_accepted(name: str, options: dict[str, Any]) -> None:
    surplus = sorted(set(options) - _ACCEPTED)
    if surplus:
        raise ValueError(
            f"{surplus} cannot be given for {name!r}, which tl_bilinear reads: leave them out, or "
            "fetch the files yourself and give the folder to tl_bilinear.load"
        )
