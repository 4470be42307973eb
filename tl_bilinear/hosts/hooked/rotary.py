"""A transformers model's rotary embedding as HookedTransformer settings, and the proof of it.

The settings are made of the configuration; whether they give the frequencies that the built
module has is then checked, so that a variant which is read wrongly is refused.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

FULL, SLIDING = "full_attention", "sliding_attention"


def rotary_settings(transformers_model: Any) -> dict[str, Any]:
    """The part of HookedTransformerConfig that says how positions rotate queries and keys.

    Raises:
        ValueError: for a kind of scaling that HookedTransformer does not have.
    """
    rope = transformers_model.config.rope_parameters
    settings = {
        "positional_embedding_type": "rotary",
        "rotary_dim": 2 * _built(transformers_model, FULL)[0].numel(),
        "rotary_adjacent_pairs": False,
    }
    if FULL not in rope and SLIDING not in rope:
        return {**settings, **_scaling(transformers_model, rope)}
    # Gemma 3: a rotation for each kind of layer.
    local = rope.get(SLIDING)
    everywhere = rope.get(FULL) or local
    settings |= _scaling(transformers_model, everywhere)
    if local is not None:
        if local.get("rope_type", "default") != "default":
            raise _refusal(transformers_model, local)
        settings |= {"rotary_base_local": local["rope_theta"], "yarn_global_attn_only": True}
    return settings


def require_same_rotation(transformers_model: Any, hooked_transformer: Any) -> None:
    """Compare the frequencies and amplitude of every layer's rotation with the built module's.

    Raises:
        ValueError: they differ, so that this kind of rotation cannot be held.
    """
    types = getattr(transformers_model.config, "layer_types", None)
    for index, block in enumerate(hooked_transformer.blocks):
        expected, amplitude = _built(transformers_model, types[index] if types else FULL)
        sin, cos = block.attn.calculate_sin_cos_rotary(
            2 * expected.numel(), 2, base=block.attn._rotary_base(), dtype=torch.float64
        )
        step = 2 if block.attn.cfg.rotary_adjacent_pairs else 1
        sin, cos = sin[1, ::step], cos[1, ::step]  # position 1: the angles are the frequencies
        sin, cos = sin[: expected.numel()], cos[: expected.numel()]
        # A module that was cast to half precision has rounded frequencies.
        rtol = 1e-5 if expected.dtype in (torch.float32, torch.float64) else 1e-2
        same = torch.allclose(
            torch.atan2(sin, cos), expected.double().cpu(), rtol=rtol, atol=0
        ) and torch.allclose(torch.hypot(sin, cos), torch.full_like(sin, amplitude), rtol=rtol)
        if not same:
            raise _refusal(transformers_model, transformers_model.config.rope_parameters)


def _built(transformers_model: Any, layer_type: str) -> tuple[Float[Tensor, " pair"], float]:
    """Frequencies (radians per position) and amplitude of the built rotary module."""
    rotary = transformers_model.model.rotary_emb
    if hasattr(rotary, "inv_freq"):
        return rotary.inv_freq, float(rotary.attention_scaling)
    known = layer_type if hasattr(rotary, f"{layer_type}_inv_freq") else SLIDING
    scaling = getattr(rotary, f"{known}_attention_scaling")
    return getattr(rotary, f"{known}_inv_freq"), float(scaling)


def _scaling(transformers_model: Any, rope: Mapping[str, Any]) -> dict[str, Any]:
    kind = rope.get("rope_type", "default")
    base = {"rotary_base": rope["rope_theta"]}
    if kind == "default":
        return base
    if kind == "linear":
        return {**base, "rotary_scaling_factor": float(rope["factor"])}
    if kind == "llama3":
        return {
            **base,
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": rope["factor"],
            "NTK_by_parts_low_freq_factor": rope["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": rope["high_freq_factor"],
            "NTK_original_ctx_len": rope["original_max_position_embeddings"],
        }
    if kind == "yarn" and rope.get("factor") and math.isfinite(rope["factor"]):
        return {
            **base,
            "use_yarn_rope": True,
            "yarn_factor": rope["factor"],
            "yarn_attention_factor": _built(transformers_model, FULL)[1],
            "yarn_beta_fast": rope.get("beta_fast") or 32.0,
            "yarn_beta_slow": rope.get("beta_slow") or 1.0,
            "yarn_truncate": rope.get("truncate", True),
            "yarn_original_max_position_embeddings": rope["original_max_position_embeddings"],
        }
    raise _refusal(transformers_model, rope)


def _refusal(transformers_model: Any, rope: Mapping[str, Any]) -> ValueError:
    from tl_bilinear.hosts.hooked.decoder import refusal

    return refusal(transformers_model, f"its rotary scaling {dict(rope)!r} is not known there")
