"""Plain settings and tensors back into a HookedTransformer or a natively built bridge."""

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts.boot import HostName, require_host_name
from tl_bilinear.hosts.registration import has_hooked_transformer, register
from tl_bilinear.hosts.settings import HOOKED_ONLY, Settings
from tl_bilinear.hosts.to_plain import LINEARS, WHOLE, PlainModel

# Spelt alike in both configurations.
SHARED = (
    "n_layers",
    "d_model",
    "n_ctx",
    "d_head",
    "n_heads",
    "d_mlp",
    "d_vocab",
    "d_vocab_out",
    "normalization_type",
    "final_rms",
    "eps",
    "positional_embedding_type",
    "rotary_dim",
    "rotary_base",
    "attn_scale",
    "attention_dir",
    "attn_scores_soft_cap",
    "output_logits_soft_cap",
    "default_prepend_bos",
)


def boot_plain(
    plain: PlainModel, tokenizer: Any, name: str, host: HostName = "auto", device: str = "cpu"
) -> Any:
    """The model, weights as they are.

    Args:
        name: what results are to call it.
        host: "auto" is the class that it was taken from, where this TransformerLens has it,
            and a native bridge else.

    Raises:
        ValueError: an unknown host, a HookedTransformer on TransformerLens 4.x, or settings
            that the host cannot compute.
    """
    require_host_name(host)
    register()
    if host == "auto":
        hooked = plain.kind == "HookedTransformer" and has_hooked_transformer()
        host = "hooked_transformer" if hooked else "transformer_bridge"
    with torch.random.fork_rng(devices=[]):  # modules are filled at random before the weights
        if host == "transformer_bridge":
            return _native_bridge(plain, tokenizer, name, device)
        return _hooked_transformer(plain, tokenizer, name, device)


def _config(plain: PlainModel, name: str, device: str) -> dict[str, Any]:
    settings = plain.settings
    shared = settings.n_key_value_heads != settings.n_heads
    return {
        **{key: getattr(settings, key) for key in SHARED},
        "n_key_value_heads": settings.n_key_value_heads if shared else None,
        "act_fn": "bilinear",
        "gated_mlp": True,
        "init_weights": False,
        "dtype": plain.state["embed.W_E"].dtype,
        "device": device,
        "model_name": name,
    }


def _hooked_transformer(plain: PlainModel, tokenizer: Any, name: str, device: str) -> Any:
    if not has_hooked_transformer():
        raise ValueError(
            "TransformerLens 4.x has no HookedTransformer: use host='transformer_bridge', or "
            "install transformer-lens 3.9"
        )
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    settings = plain.settings
    if settings.normalization_type is None and settings.final_rms:
        raise ValueError(
            "a HookedTransformer without norms has no last norm either (final_rms): use "
            "host='transformer_bridge'"
        )
    types = settings.attn_types
    cfg = HookedTransformerConfig(
        **_config(plain, name, device),
        **{key: getattr(settings, key) for key in HOOKED_ONLY if key != "attn_types"},
        attn_types=None if types is None else list(types),
        rotary_adjacent_pairs=settings.rotary_adjacent_pairs,
    )
    model = HookedTransformer(cfg, tokenizer=tokenizer, move_to_device=False)
    under = "_" if cfg.n_key_value_heads is not None else ""
    state = {_shared_heads(key, under): value for key, value in plain.state.items()}
    missing, surplus = model.load_state_dict(state, strict=False)
    buffers = {key for key, _ in model.named_buffers()}
    biases = {key for key in missing if ".mlp.b_" in key and not settings.mlp_bias}
    assert set(missing) <= buffers | biases and not surplus, (missing, surplus)
    model.to(device, print_details=False)
    return model.eval()


def _shared_heads(name: str, under: str) -> str:
    *path, last = name.split(".")
    key_or_value = path[-1] == "attn" and last[-1] in "KV"
    return ".".join([*path, (under if key_or_value else "") + last])


def _native_bridge(plain: PlainModel, tokenizer: Any, name: str, device: str) -> Any:
    from transformer_lens.config import TransformerBridgeConfig

    from tl_bilinear.hosts.native import boot_bilinear, cast_

    settings = plain.settings
    used = [key for key, unused in HOOKED_ONLY.items() if getattr(settings, key) != unused]
    if settings.positional_embedding_type == "shortformer":
        used.append("positional_embedding_type")
    if settings.attn_scale == 1 and settings.d_head > 1:
        used.append("attn_scale")  # upstream takes it for a mistake
    if used:
        shown = ", ".join(f"{key}={getattr(settings, key)!r}" for key in used)
        raise ValueError(
            f"a natively built TransformerBridge cannot compute {shown}: use "
            "host='hooked_transformer', on TransformerLens 3.9"
        )
    dtype = plain.state["embed.W_E"].dtype
    config = TransformerBridgeConfig(**_config(plain, name, device))
    model: Any = boot_bilinear(config, mlp_bias=settings.mlp_bias, tokenizer=tokenizer)
    cast_(model, dtype)
    model.cfg.model_name = name
    model.load_state_dict(_native_state(settings, plain.state), strict=True)
    model.to(device, print_details=False)
    return model.eval()


def _native_state(settings: Settings, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {new: (old, transposed) for old, (new, transposed) in WHOLE.items()}
    letters = {new: old for old, new in LINEARS.items()}
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        *path, last = name.split(".")
        at = ".".join([*path, ""])
        kind = "bias" if last.startswith("b") else "weight"
        if name in names:
            to, transposed = names[name]
            found[to] = value.T if transposed else value
        elif path[-1] == "attn":
            if last[-1] in "QK" and settings.positional_embedding_type == "rotary":
                value = _adjacent(settings, value)
            found[f"{at}{letters[last[-1]]}.{kind}"] = _joined(value, last)
        elif path[-1] == "mlp":
            found[f"{at}{last[2:]}.{kind}"] = value if kind == "bias" else value.T
        else:
            found[f"{at}{kind}"] = value
    return {name: value.contiguous() for name, value in found.items()}


def _joined(value: Tensor, last: str) -> Tensor:
    if last == "b_O":
        return value
    if last == "W_O":
        return rearrange(value, "n h m -> m (n h)")
    pattern = "n h -> (n h)" if last.startswith("b") else "n m h -> (n h) m"
    return rearrange(value, pattern)


def _adjacent(
    settings: Settings, value: Float[Tensor, "*axes d_head"]
) -> Float[Tensor, "*axes d_head"]:
    """Queries or keys whose halves rotate together, to where a native bridge rotates pairs.

    Both are permuted alike, so their products stay.
    """
    if settings.rotary_adjacent_pairs:
        return value
    dim = settings.rotary_dim or settings.d_head
    first, second = value[..., :dim].chunk(2, -1)
    pairs = torch.stack([first, second], -1).flatten(-2)
    return torch.cat([pairs, value[..., dim:]], -1)
