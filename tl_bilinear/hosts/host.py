"""One interface over the TransformerLens models that can hold bilinear MLPs.

Orientation, biases, norms and hook names are known here and nowhere else. Weights are
returned in TransformerLens' orientation (`x @ W`), live: an edit of the model shows in the
next call.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_bilinear.frozen_map import FrozenMap
from tl_bilinear.hosts.gates import FROZEN, Gate, gated_error, is_identity, require_gate
from tl_bilinear.hosts.norm import NO_NORM, Norm
from tl_bilinear.hosts.padding import require_no_left_padding
from tl_bilinear.quadratic_map import QuadraticMap
from tl_bilinear.tensor import BilinearTensor


class AbstractHost(ABC):
    """What the rest of the package may ask of a model."""

    kind: str
    """Name of the TransformerLens class."""

    def __init__(self, model: Any):
        self.model = model
        cfg = model.cfg
        self.n_layers: int = cfg.n_layers
        self.d_model: int = cfg.d_model
        self.d_head: int = cfg.d_head
        self.n_heads: int = cfg.n_heads
        self.n_ctx: int = cfg.n_ctx
        self.d_vocab: int = self.W_U.shape[1]
        self.dtype: torch.dtype = self.W_U.dtype

    @property
    def device(self) -> torch.device:
        return self.W_U.device

    @property
    def d_mlp(self) -> int:
        return self._mlp(0).W_in.shape[1]

    @property
    def tokenizer(self) -> Any:
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            raise ValueError("this model has no tokenizer: give token ids instead of text")
        return tokenizer

    # ---- weights -------------------------------------------------------------------------

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """What each token writes into the stream; Gemma's factor of sqrt(d_model) included."""
        return self.model.W_E

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        return self.model.W_U

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        bias = self._optional(lambda: self.model.b_U)
        return torch.zeros_like(self.W_U[0]) if bias is None else bias

    def W_O(self, layer: int) -> Float[Tensor, "n_heads d_head d_model"]:
        """A layer's attention output map, one matrix per head."""
        return self._block(layer).attn.W_O

    def b_O(self, layer: int) -> Float[Tensor, " d_model"]:
        """A layer's attention output bias; zeros where there is none."""
        bias = self._optional(lambda: self._block(layer).attn.b_O)
        return torch.zeros_like(self.W_O(layer)[0, 0]) if bias is None else bias

    def mlp_weights(self, layer: int) -> QuadraticMap:
        """The MLP's weights as a map of its own input, which the norm's gain and bias have passed.

        Whatever activation the gate has is not in them.

        Raises:
            ValueError: if the layer does not exist or its MLP has no gate.
        """
        mlp = self._mlp(layer)
        tensor = BilinearTensor(mlp.W_gate.detach(), mlp.W_in.detach(), mlp.W_out.detach().T)

        def bias(name: str, like: Tensor) -> Tensor:
            value = self._optional(lambda: getattr(mlp, name))
            return torch.zeros_like(like) if value is None else value.detach()

        return QuadraticMap(
            tensor=tensor,
            left_bias=bias("b_gate", tensor.left[0]),
            right_bias=bias("b_in", tensor.right[0]),
            out_bias=bias("b_out", tensor.out[:, 0]),
        )

    def folded_mlp_weights(self, layer: int) -> QuadraticMap:
        """The MLP's weights as a map of the normalised stream (`hook_normalized`).

        The norm's gain, bias and centring are folded in here; the model is not touched.
        """
        norm = self.mlp_norm(layer)
        return self.mlp_weights(layer).fold_input_norm(norm.gain, norm.bias, norm.centred)

    def mlp_map(self, layer: int) -> QuadraticMap:
        """The bilinear MLP as a map of the normalised stream: its folded weights.

        Raises:
            NotBilinearError: for a gated MLP, which no one map describes.
        """
        if self.is_gated(layer):
            raise gated_error(layer, self.gate_activation(layer))
        return self.folded_mlp_weights(layer)

    def mlp_tensor(self, layer: int) -> BilinearTensor:
        """The quadratic part of `mlp_map`: what modes are taken from."""
        return self.mlp_map(layer).tensor

    @property
    def frozen_gates(self) -> bool:
        """Whether the model was loaded with frozen_gates=True (or passed to `freeze_gates_`)."""
        return getattr(self.model, FROZEN, False)

    def is_gated(self, layer: int) -> bool:
        """Whether the gate was built with an activation that is not the identity."""
        activation = self.gate_activation(layer)
        return activation is not None and not is_identity(activation)

    def gate(self, layer: int) -> Gate | None:
        """The gate's activation; None where the MLP is bilinear.

        Raises:
            ValueError: an activation whose slope is not known.
        """
        return require_gate(layer, self.gate_activation(layer)) if self.is_gated(layer) else None

    def frozen_mlp_map(self, layer: int, stream: Float[Tensor, "*batch d_model"]) -> FrozenMap:
        """The MLP on given inputs: one map per token, the gate's slope there held fixed.

        The slopes are recomputed from the MLP's input, which is seen on every host in every
        mode, at O(d_model * d_mlp) per token. A bilinear MLP's are one.

        Args:
            stream: what `mlp_input_site` gives; the map has its dtype and device.

        Raises:
            NotBilinearError: a gated model that was not opened with frozen gates.
            ValueError: an activation whose slope is not known.
        """
        weights = self.folded_mlp_weights(layer).to(stream)
        gate = self.gate(layer) if self.frozen_gates else None
        if gate is not None:
            return gate.freeze(weights, stream)
        _ = self.mlp_map(layer)
        return FrozenMap(weights, stream.new_ones(*stream.shape[:-1], weights.tensor.rank))

    def mlp_norm(self, layer: int) -> Norm:
        """The norm that the MLP reads through."""
        return self._norm(self._block(layer).ln2)

    def attention_norm(self, layer: int) -> Norm:
        """The norm that a layer's attention reads through."""
        return self._norm(self._block(layer).ln1)

    def mlp_post_norm(self, layer: int) -> Norm:
        """The norm between the MLP and the stream (Gemma 2 and 3, OLMo2); most have none."""
        return NO_NORM

    def attention_post_norm(self, layer: int) -> Norm:
        """The norm between the heads' sum and the stream; most have none."""
        return NO_NORM

    @property
    def logit_softcap(self) -> float | None:
        """c where the logits are c tanh(W_U x / c); targets are read before it."""
        cap = getattr(self.model.cfg, "output_logits_soft_cap", None)
        return float(cap) if cap is not None and cap > 0 else None

    def final_norm(self) -> Norm:
        """The norm before the unembedding."""
        return self._norm(self.model.ln_final)

    def fold_readout(self, w: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The u with `u . stream / scale + offset = w . ln_final(stream)`.

        `w` is read after the final norm, as a column of W_U is; the norm's gain and centring
        are folded in, scale is its denominator, offset is `readout_offset(w)`.
        """
        return self.final_norm().fold_readout(w)

    def readout_offset(self, w: Float[Tensor, " d_model"]) -> Float[Tensor, ""]:
        """The part of `w . ln_final(stream)` that no input reaches: the norm's bias."""
        bias = self.final_norm().bias
        return torch.zeros_like(w[0]) if bias is None else bias.to(w) @ w

    # ---- hook names ----------------------------------------------------------------------

    def mlp_input_site(self, layer: int) -> str:
        """Hook whose value `mlp_map` reads."""
        if self.mlp_norm(layer).exists:
            return f"blocks.{layer}.ln2.hook_normalized"
        return f"blocks.{layer}.hook_resid_mid"

    def mlp_out_site(self, layer: int) -> str:
        """Hook whose value `mlp_map` gives, and where ablations act."""
        return f"blocks.{layer}.hook_mlp_out"

    def mlp_hidden_site(self, layer: int) -> str:
        """Hook of the MLP's hidden products, [batch, pos, d_mlp]: what W_out reads."""
        return f"blocks.{layer}.mlp.hook_post"

    def mlp_post_scale_site(self, layer: int) -> str | None:
        """Hook of `mlp_post_norm`'s denominator, [batch, pos, 1]; None without one."""
        return None

    def attention_post_scale_site(self, layer: int) -> str | None:
        """Hook of `attention_post_norm`'s denominator, [batch, pos, 1]; None without one."""
        return None

    def head_site(self, layer: int) -> str:
        """Hook of the heads' values before W_O, [batch, pos, n_heads, d_head]."""
        return f"blocks.{layer}.attn.hook_z"

    def final_scale_site(self) -> str | None:
        """Hook of the final norm's denominator, [batch, pos, 1]; None where there is none."""
        return "ln_final.hook_scale" if self.final_norm().exists else None

    def final_input_site(self) -> str:
        """Hook of the final norm's output before its gain, [batch, pos, d_model]."""
        if self.final_norm().exists:
            return "ln_final.hook_normalized"
        return f"blocks.{self.n_layers - 1}.hook_resid_post"

    def embedding_site(self) -> str:
        """Hook of the stream before the first block: token and position embedding.

        Not `hook_pos_embed`: on a rotary bridge that name is an alias of the rotation.
        """
        return "blocks.0.hook_resid_pre"

    # ---- text ----------------------------------------------------------------------------

    def to_tokens(self, text: str) -> Int[Tensor, " pos"]:
        """Token ids of one text as TransformerLens makes them, BOS first by its default.

        The whole text: it may be longer than the context.
        """
        if not isinstance(text, str):
            raise ValueError(f"one text (a string) is needed, got {type(text).__name__}")
        _ = self.tokenizer
        return self.model.to_tokens(text, truncate=False)[0].cpu()

    def fits(self, text: str) -> bool:
        """Whether a text is no longer than the context."""
        # A token is a byte at least: most texts need not be tokenised to know.
        return 2 * len(text.encode()) <= self.n_ctx or len(self.to_tokens(text)) <= self.n_ctx

    def str_tokens(self, tokens: Int[Tensor, " pos"]) -> list[str]:
        """Each token as text, spaces kept where the tokenizer marks them.

        Read from the vocabulary rather than decoded one by one: SentencePiece drops the
        leading space of whatever it decodes first.
        """
        pieces = self.tokenizer.convert_ids_to_tokens(tokens.tolist())
        return [readable(piece) for piece in pieces]

    # ---- running -------------------------------------------------------------------------

    def read(
        self,
        tokens: Int[Tensor, "batch pos"],
        sites: Sequence[str],
        *,
        attention_mask: Int[Tensor, "batch pos"] | None = None,
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], dict[str, Tensor]]:
        """Logits and the values at `sites`, without gradients.

        Args:
            attention_mask: 1 for tokens, 0 for padding on either side. What stands at padding
                means nothing. Without a mask every token counts.

        Raises:
            KeyError: a name that this model has no hook for (3.9's bridge would ignore it).
            ValueError: rows that are padded on the left, without a mask.
        """
        self.require_sites(sites)
        masked = {}
        if attention_mask is None:
            require_no_left_padding(self.model.tokenizer, tokens)
        else:
            masked["attention_mask"] = attention_mask.to(self.device)
        wanted = set(sites)
        with torch.no_grad():
            logits, cache = self.model.run_with_cache(
                tokens.to(self.device), names_filter=lambda name: name in wanted, **masked
            )
        return logits, {site: cache[site] for site in sites}

    def read_streams(
        self, tokens: Int[Tensor, "batch pos"], layers: Sequence[int]
    ) -> dict[int, Float[Tensor, "batch pos d_model"]]:
        """What the MLPs of some layers read (`mlp_input_site`); the model stops after the last.

        Raises:
            ValueError: rows that are padded on the left.
        """
        require_no_left_padding(self.model.tokenizer, tokens)
        sites = {layer: self.mlp_input_site(layer) for layer in layers}
        self.require_sites(list(sites.values()))
        wanted = set(sites.values())
        with torch.no_grad():
            _, cache = self.model.run_with_cache(
                tokens.to(self.device),
                names_filter=lambda name: name in wanted,
                stop_at_layer=max(layers) + 1,
            )
        return {layer: cache[site] for layer, site in sites.items()}

    def hooks(self, hooks: Sequence[tuple[str, Callable]]) -> Any:
        """A context in which the hooks are attached; they are removed at its end, always.

        Raises:
            KeyError: a name that this model has no hook for (3.9's bridge would ignore it).
        """
        self.require_sites([name for name, _ in hooks])
        return self.model.hooks(fwd_hooks=list(hooks))

    def require_sites(self, sites: Sequence[str]) -> None:
        """Raise KeyError for a name that is not in the model's `hook_dict`."""
        known = self.model.hook_dict  # built anew at every access by a bridge
        unknown = [site for site in sites if site not in known]
        if unknown:
            raise KeyError(
                f"{self.kind} has no hook named {unknown}: see the keys of model.hook_dict"
            )

    def run_mlp(
        self, layer: int, x: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """The host's own MLP on a given input (after the norm), for checking."""
        with torch.no_grad():
            return self._block(layer).mlp(x)

    def adds_bias_behind(self, layer: int) -> bool:
        """Whether b_in is added behind the product, where no `QuadraticMap` has a bias."""
        return False

    def gate_activation(self, layer: int) -> Callable[..., Any] | None:
        """The gate's activation as the model was built; None where it has none (bilinear)."""
        return self._gate_activation(self._mlp(layer))

    # ---- what differs between hosts ------------------------------------------------------

    @abstractmethod
    def _norm(self, module: Any) -> Norm: ...

    @abstractmethod
    def _gate_activation(self, mlp: Any) -> Callable[..., Any] | None: ...

    def _optional(self, read: Callable[[], Any]) -> Any:
        """A weight that TransformerLens may lack: None, an AttributeError or a TypeError."""
        try:
            return read()
        except (AttributeError, TypeError):
            return None

    def _block(self, layer: int) -> Any:
        if not 0 <= layer < self.n_layers:
            raise ValueError(
                f"`layer` {layer} is out of range: this model has {self.n_layers} layers "
                f"(0-{self.n_layers - 1})"
            )
        return self.model.blocks[layer]

    def _mlp(self, layer: int) -> Any:
        mlp = getattr(self._block(layer), "mlp", None)
        if mlp is None or self._optional(lambda: mlp.W_gate) is None:
            raise ValueError(
                f"layer {layer} has no gated MLP ({type(mlp).__name__}): tl_bilinear reads MLPs "
                "of the form W_out((W_gate x) * (W_in x)); TransformerLens itself opens others"
            )
        return mlp


def readable(piece: str) -> str:
    """A vocabulary entry as text: SentencePiece's and byte-level BPE's marks undone.

    A byte token stays "<0x6F>", so that it is not taken for the letter; a newline is one.
    """
    if piece == "<0x0A>":
        return "\n"
    return piece.replace("\u2581", " ").replace("\u0120", " ").replace("\u010a", "\n")
