"""What a natively built model's configuration has to say, free of TransformerLens' classes.

These are the fields of our own checkpoint format (docs/format.md). A model whose configuration
uses anything else is refused when it is saved, so that nothing is lost unseen.
"""

from dataclasses import dataclass, fields
from typing import Any

NORMS = ("LN", "LNPre", "RMS", "RMSPre", None)
POSITIONS = ("standard", "rotary", "shortformer")
NTK = {
    "use_NTK_by_parts_rope": False,
    "NTK_by_parts_low_freq_factor": 1.0,
    "NTK_by_parts_high_freq_factor": 4.0,
    "NTK_by_parts_factor": 8.0,
    "NTK_original_ctx_len": 8192,
}
# What only a HookedTransformer computes, and the value that says it is not used.
HOOKED_ONLY: dict[str, Any] = {
    "scale_attn_by_inverse_layer_idx": False,
    "use_local_attn": False,
    "window_size": None,
    "attn_types": None,
    **NTK,
}


@dataclass(frozen=True)
class Settings:
    """A bilinear transformer's settings, named as in TransformerLens' configurations."""

    n_layers: int
    d_model: int
    n_ctx: int
    d_head: int
    n_heads: int
    n_key_value_heads: int
    """n_heads where no heads are shared."""
    d_mlp: int
    d_vocab: int
    d_vocab_out: int
    mlp_bias: bool
    """Whether the MLPs have b_gate, b_in (both inside the product) and b_out."""
    normalization_type: str | None
    final_rms: bool
    eps: float
    positional_embedding_type: str
    rotary_dim: int | None
    rotary_base: float
    rotary_adjacent_pairs: bool
    """Dimensions (0, 1), (2, 3), ... rotate together; else (0, h/2), (1, h/2 + 1), ..."""
    attn_scale: float
    """What attention scores are divided by."""
    attention_dir: str
    attn_scores_soft_cap: float
    """Zero or less: none."""
    output_logits_soft_cap: float
    default_prepend_bos: bool
    scale_attn_by_inverse_layer_idx: bool
    use_local_attn: bool
    window_size: int | None
    attn_types: tuple[str, ...] | None
    """"global" or "local", one per layer."""
    use_NTK_by_parts_rope: bool
    NTK_by_parts_low_freq_factor: float
    NTK_by_parts_high_freq_factor: float
    NTK_by_parts_factor: float
    NTK_original_ctx_len: int

    def __post_init__(self) -> None:
        positive = ("n_layers", "d_model", "n_ctx", "d_head", "n_heads", "n_key_value_heads")
        for name in (*positive, "d_mlp", "d_vocab", "d_vocab_out"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, and must be at least 1")
        if self.n_heads % self.n_key_value_heads:
            raise ValueError(
                f"n_heads {self.n_heads} is no multiple of n_key_value_heads "
                f"{self.n_key_value_heads}"
            )
        choices = {
            "normalization_type": NORMS,
            "positional_embedding_type": POSITIONS,
            "attention_dir": ("causal", "bidirectional"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, not one of {list(known)}")
        if not self.eps >= 0 or not self.attn_scale > 0:
            raise ValueError(
                f"eps {self.eps} must not be negative, attn_scale {self.attn_scale} be positive"
            )
        self._require_rotation()
        if self.use_local_attn and (
            self.window_size is None
            or self.window_size < 1
            or self.attn_types is None
            or len(self.attn_types) != self.n_layers
            or not set(self.attn_types) <= {"global", "local"}
        ):
            raise ValueError(
                "use_local_attn needs a window_size and attn_types with 'global' or 'local' for "
                f"each of {self.n_layers} layers, got {self.window_size} and {self.attn_types}"
            )

    def _require_rotation(self) -> None:
        if self.positional_embedding_type != "rotary":
            return
        dim = self.rotary_dim
        if dim is None or dim < 2 or dim % 2 or dim > self.d_head or not self.rotary_base > 0:
            raise ValueError(
                f"rotary_dim is {dim}, rotary_base {self.rotary_base}: rotation needs an even "
                f"number of dimensions up to d_head {self.d_head}, and a positive base"
            )

    @property
    def norm_weights(self) -> tuple[str, ...]:
        """What each norm but the last holds: w and b (LayerNorm), w, or nothing."""
        return {"LN": ("w", "b"), "RMS": ("w",)}.get(self.normalization_type or "", ())

    @property
    def final_norm_weights(self) -> tuple[str, ...]:
        return self.norm_weights[:1] if self.final_rms else self.norm_weights

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of a checkpoint with these settings, named and oriented as
        TransformerLens does (`x @ W`)."""
        d, heads, kv, h = self.d_model, self.n_heads, self.n_key_value_heads, self.d_head
        found: dict[str, tuple[int, ...]] = {
            "embed.W_E": (self.d_vocab, d),
            "unembed.W_U": (d, self.d_vocab_out),
            "unembed.b_U": (self.d_vocab_out,),
        }
        if self.positional_embedding_type != "rotary":
            found["pos_embed.W_pos"] = (self.n_ctx, d)
        found |= {f"ln_final.{weight}": (d,) for weight in self.final_norm_weights}
        block: dict[str, tuple[int, ...]] = {
            **{f"{norm}.{w}": (d,) for norm in ("ln1", "ln2") for w in self.norm_weights},
            "attn.W_Q": (heads, d, h),
            "attn.W_K": (kv, d, h),
            "attn.W_V": (kv, d, h),
            "attn.W_O": (heads, h, d),
            "attn.b_Q": (heads, h),
            "attn.b_K": (kv, h),
            "attn.b_V": (kv, h),
            "attn.b_O": (d,),
            "mlp.W_gate": (d, self.d_mlp),
            "mlp.W_in": (d, self.d_mlp),
            "mlp.W_out": (self.d_mlp, d),
        }
        if self.mlp_bias:
            block |= {"mlp.b_gate": (self.d_mlp,), "mlp.b_in": (self.d_mlp,), "mlp.b_out": (d,)}
        for layer in range(self.n_layers):
            found |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
        return found


FIELDS = tuple(field.name for field in fields(Settings))
