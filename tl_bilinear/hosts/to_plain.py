"""A HookedTransformer or a natively built bridge as plain settings and tensors.

Both hosts give the same names and orientation, those of a HookedTransformer (`x @ W`, heads
apart), so that what one of them saved the other can hold where it can compute it. Numbers are
rearranged, never computed with.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from tl_bilinear.hosts import get_host
from tl_bilinear.hosts.bridge import TransformerBridgeHost, is_identity
from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.hosts.settings import FIELDS, HOOKED_ONLY, Settings

NORM_TYPES = {"LN": "LN", "LNPRE": "LNPre", "RMS": "RMS", "RMSPRE": "RMSPre"}
# Configuration that the function computed does not depend on, or that is read from the weights.
NOT_THE_FUNCTION = frozenset(
    """
    act_fn gated_mlp attn_only use_attn_scale device dtype n_devices seed n_params
    init_mode init_weights initializer_range model_name architecture original_architecture
    tokenizer_name tokenizer_prepends_bos tokenizer_appends_eos default_padding_side
    trust_remote_code from_checkpoint checkpoint_index checkpoint_label_type checkpoint_value
    use_attn_result use_split_qkv_input use_hook_mlp_in use_attn_in use_hook_tokens
    ungroup_grouped_query_attention split_attention_weights attn_implementation
    layer_norm_folding uses_rms_norm tie_word_embeddings
    """.split()
)
LINEARS = {"q": "Q", "k": "K", "v": "V", "o": "O"}


@dataclass(frozen=True, eq=False)
class PlainModel:
    """A model that no class is needed to describe."""

    settings: Settings
    state: Mapping[str, Tensor]
    """Named and shaped as `settings.shapes()` says, each tensor in memory of its own."""
    kind: str
    """The TransformerLens class that it was taken from."""


def plain_model(model: Any) -> PlainModel:
    """Settings and weights as they are now, edits and weight processing included.

    Raises:
        ValueError: a bridge of a transformers model, an MLP that is not bilinear, or settings
            that `Settings` has no field for.
    """
    host = get_host(model)
    native = isinstance(host, TransformerBridgeHost)
    _require_plain(host)
    state = _native_state(host) if native else _hooked_state(host)
    mlp_bias = any(".mlp.b_" in name for name in state)
    settings = _settings(host, native, mlp_bias, "blocks.0.ln1.w" in state)
    shapes = settings.shapes()
    for name in shapes.keys() - state.keys():
        if ".b_" not in name:
            raise ValueError(f"this model cannot be saved: it has no {name}")
        state[name] = torch.zeros(shapes[name], dtype=host.dtype, device=host.device)
    wrong = sorted(name for name, value in state.items() if shapes.get(name) != tuple(value.shape))
    if wrong:
        raise ValueError(
            f"this model cannot be saved: its configuration has no place for {wrong[:3]}"
        )
    copied = {
        name: state[name].detach().clone(memory_format=torch.contiguous_format) for name in shapes
    }
    return PlainModel(settings, copied, host.kind)


def _require_plain(host: AbstractHost) -> None:
    cfg = host.model.cfg
    for layer in range(host.n_layers):
        activation = host.gate_activation(layer)
        if activation is not None and not is_identity(activation):
            raise ValueError(
                f"layer {layer} has a gate activation ({cfg.act_fn}), and only bilinear models "
                "have a format of their own"
            )
    sizes = ("d_model", "d_head", "n_layers", "n_ctx", "n_heads", "d_mlp", "d_vocab")
    default = type(cfg)(
        **{name: getattr(cfg, name) for name in sizes}, act_fn="bilinear", gated_mlp=True
    ).to_dict()
    surplus = {
        name: value
        for name, value in cfg.to_dict().items()
        if name not in NOT_THE_FUNCTION
        and name not in FIELDS
        and not name.startswith("_")
        and value != default.get(name)
    }
    if surplus:
        shown = ", ".join(f"{name}={value!r}" for name, value in list(surplus.items())[:4])
        raise ValueError(f"our own format has no field for {shown}")


def _settings(host: AbstractHost, native: bool, mlp_bias: bool, weighted_norms: bool) -> Settings:
    cfg = host.model.cfg
    norm: str | None = cfg.normalization_type
    if norm is not None:
        # A processed bridge keeps gains of one under either name.
        plain = NORM_TYPES.get(norm.upper(), str(norm)).removesuffix("Pre")
        norm = plain if weighted_norms else plain + "Pre"
    # A native bridge divides by sqrt(d_head) where a HookedTransformer divides by nothing.
    scale = float(cfg.attn_scale) if cfg.attn_scale > 0 else float(cfg.d_head) ** 0.5
    if not cfg.use_attn_scale:
        scale = float(cfg.d_head) ** 0.5 if native else 1.0
    positions = cfg.positional_embedding_type.lower()
    rotary = positions == "rotary"
    hooked_only = {} if native else {name: getattr(cfg, name) for name in HOOKED_ONLY}
    values: dict[str, Any] = {**HOOKED_ONLY, **hooked_only}
    types = values["attn_types"]
    values["attn_types"] = None if types is None else tuple(types)
    return Settings(
        n_layers=host.n_layers,
        d_model=host.d_model,
        n_ctx=host.n_ctx,
        d_head=host.d_head,
        n_heads=host.n_heads,
        n_key_value_heads=cfg.n_key_value_heads or host.n_heads,
        d_mlp=host.d_mlp,
        d_vocab=host.W_E.shape[0],
        d_vocab_out=host.d_vocab,
        mlp_bias=mlp_bias,
        normalization_type=norm,
        # Without a norm a HookedTransformer has no last one either, whatever final_rms says.
        final_rms=bool(cfg.final_rms) and (native or norm is not None),
        eps=float(cfg.eps),
        positional_embedding_type=positions,
        rotary_dim=(cfg.rotary_dim or host.d_head) if rotary else None,
        rotary_base=float(cfg.rotary_base),
        rotary_adjacent_pairs=native or bool(cfg.rotary_adjacent_pairs),
        attn_scale=scale,
        attention_dir=cfg.attention_dir,
        attn_scores_soft_cap=float(cfg.attn_scores_soft_cap or -1.0),
        output_logits_soft_cap=float(cfg.output_logits_soft_cap or -1.0),
        default_prepend_bos=bool(cfg.default_prepend_bos),
        **values,
    )


def _hooked_state(host: AbstractHost) -> dict[str, Tensor]:
    """Parameters only: masks and rotations are built from the settings."""
    # Heads that are shared have an underscore before their names.
    return {name.replace("attn._", "attn."): value for name, value in host.model.named_parameters()}


def _native_state(host: AbstractHost) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, value in host.model.state_dict().items():
        *path, module, kind = name.split(".")
        at = ".".join([*path, ""])
        bias = kind == "bias"
        if module in LINEARS and path[-1:] == ["attn"]:
            to = f"{at}{'b' if bias else 'W'}_{LINEARS[module]}"
            if module == "o":
                state[to] = value if bias else rearrange(value, "m (n h) -> n h m", h=host.d_head)
            elif bias:
                state[to] = rearrange(value, "(n h) -> n h", h=host.d_head)
            else:
                state[to] = rearrange(value, "(n h) m -> n m h", h=host.d_head)
        elif path[-1:] == ["mlp"]:
            state[f"{at}{'b' if bias else 'W'}_{module}"] = value if bias else value.T
        elif module in ("ln1", "ln2", "ln_final"):
            state[f"{at}{module}.{'b' if bias else 'w'}"] = value
        elif name in WHOLE:
            to, transposed = WHOLE[name]
            state[to] = value.T if transposed else value
        else:
            state[name] = value  # has no place, and is named where that is found out
    return state


WHOLE = {
    "embed.weight": ("embed.W_E", False),
    "pos_embed.weight": ("pos_embed.W_pos", False),
    "unembed.weight": ("unembed.W_U", True),
    "unembed.bias": ("unembed.b_U", False),
}
