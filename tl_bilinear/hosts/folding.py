"""TransformerLens' weight processing, made exact for bilinear models, or refused.

So it is for gated models that were opened with frozen gates: their norms fold alike.

Its fold of the norm before an MLP, and its centring of W_out, pick the axis by comparing
sizes, which is wrong where d_mlp == d_model; we do both ourselves and put the result in their
place. Whatever else may go wrong (LayerNorm with final_rms in 3.9) shows in the model's own
log-probabilities, taken before and after: a model that processing has changed is refused.
"""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_bilinear.hosts.gates import FROZEN
from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.quadratic_map import QuadraticMap

# Nats. Processing runs in float32 whatever the model's dtype is, and a real model's large
# activations carry its rounding to some 1e-4; the faults seen are of 1e-2 and more.
TOLERANCES = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.6}


# Gates that a bridge still computes once its weights are processed.
PROCESSED = ("silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2")


class FoldingError(ValueError):
    """Weight processing would have changed what a model computes."""


def guard_hooked_transformer() -> None:
    """Wrap `HookedTransformer.load_and_process_state_dict` for these models. Idempotent."""
    from transformer_lens import HookedTransformer

    upstream = HookedTransformer.load_and_process_state_dict
    if getattr(upstream, "_tl_bilinear", False):
        return

    @functools.wraps(upstream)
    def load_and_process_state_dict(
        self: Any, state_dict: dict[str, Tensor], *args: Any, **flags: Any
    ) -> None:
        call = inspect.signature(upstream).bind(self, state_dict, *args, **flags)
        call.apply_defaults()
        wanted = {name: on for name, on in call.arguments.items() if isinstance(on, bool)}
        ours = self.cfg.act_fn == "bilinear" or getattr(self, FROZEN, False)
        if not ours or not any(wanted.values()):
            return upstream(self, state_dict, *args, **flags)
        upstream(self, dict(state_dict), **dict.fromkeys(wanted, False))
        wanted = _without_what_is_no_identity(self.cfg, wanted)
        process_(self, lambda: upstream(self, state_dict, **wanted))

    load_and_process_state_dict._tl_bilinear = True  # pyright: ignore[reportAttributeAccessIssue]
    setattr(HookedTransformer, "load_and_process_state_dict", load_and_process_state_dict)  # noqa: B010


def _without_what_is_no_identity(cfg: Any, wanted: dict[str, bool]) -> dict[str, bool]:
    """Processing steps that would change this kind of model are left out, with a warning.

    As `HookedTransformer.from_pretrained` leaves them out; processing in place forgets to.
    """
    from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

    name = cfg.original_architecture
    off: dict[str, str] = {}
    if name in POST_NORM_ARCHITECTURES:
        reason = "its norms stand behind the sublayers"
        off |= {"fold_ln": reason, "center_writing_weights": reason}
    if cfg.output_logits_soft_cap > 0:
        off["center_unembed"] = "its logits are capped"
    skipped = {step: reason for step, reason in off.items() if wanted.get(step)}
    if skipped:
        reasons = "; ".join(dict.fromkeys(skipped.values()))
        warnings.warn(f"{name} does not support {', '.join(skipped)}: {reasons}", stacklevel=4)
    return {step: on and step not in off for step, on in wanted.items()}


def guard_bridge() -> None:
    """Wrap `TransformerBridge.process_weights` for these models. Idempotent."""
    from transformer_lens.model_bridge import TransformerBridge

    from tl_bilinear.hosts.bridge import BilinearForward

    upstream = TransformerBridge.process_weights
    if getattr(upstream, "_tl_bilinear", False):
        return

    @functools.wraps(upstream)
    def process_weights(self: Any, *args: Any, **flags: Any) -> None:
        mlps = [getattr(block, "mlp", None) for block in getattr(self, "blocks", [])]
        ours = all(isinstance(mlp, BilinearForward) for mlp in mlps) or getattr(self, FROZEN, False)
        if not mlps or not ours:
            return upstream(self, *args, **flags)
        _add_bias_conversions_(self)
        process_(self, lambda: upstream(self, *args, **flags))

    process_weights._tl_bilinear = True  # pyright: ignore[reportAttributeAccessIssue]
    TransformerBridge.process_weights = process_weights


def _add_bias_conversions_(bridge: Any) -> None:
    """Tell the adapters that forget it how many heads the biases of k and v have.

    Without it value biases under grouped-query attention (OLMo2 with attention_bias) end
    processing with a shape error.
    """
    known = bridge.adapter.weight_processing_conversions
    present = any(
        getattr(getattr(block, "attn", None), "b_V", None) is not None for block in bridge.blocks
    )
    if known is not None and present and "blocks.{i}.attn.v.weight" in known:
        standard = bridge.adapter._qkvo_weight_conversions(include_biases=True)
        bridge.adapter.weight_processing_conversions = {**standard, **known}


def process_(model: Any, process: Callable[[], None]) -> None:
    """Run `process` on a model, put our own fold of the MLPs' norms in its place.

    Costs two forward passes of a few tokens.

    Raises:
        FoldingError: the log-probabilities changed; the model must be loaded again.
    """
    from tl_bilinear.hosts import get_host

    host = get_host(model)
    before = [host.folded_mlp_weights(layer) for layer in range(host.n_layers)]
    folded = [_copy(weights) for weights in before]
    tokens = _tokens(host)
    expected = _log_probabilities(host, tokens)
    process()
    host = get_host(model)
    for layer, weights in enumerate(folded):
        if _is_folded(host, layer):
            _put_inputs_(host, layer, weights)
        _put_output_(host, layer, weights)
    error = float((_log_probabilities(host, tokens) - expected).abs().max())
    if not error <= TOLERANCES[host.dtype]:
        raise FoldingError(
            f"TransformerLens' weight processing changed this {host.kind}'s log-probabilities by "
            f"{error:.2g} nats: {_reason(host)}. The model in hand is damaged: load it again and "
            "use it unprocessed (tl_bilinear folds norms by itself wherever it needs to; "
            "docs/upstream.md)"
        )


def _copy(weights: QuadraticMap) -> QuadraticMap:
    """Bridges change their parameters in place."""
    return weights.to(torch.float64, copy=True)


def _tokens(host: AbstractHost) -> Int[Tensor, "batch pos"]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(host.d_vocab, (2, min(8, host.n_ctx)), generator=generator)


def _log_probabilities(
    host: AbstractHost, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos d_vocab"]:
    cfg = host.model.cfg
    meant = cfg.device
    # from_pretrained processes before it moves the weights to where they are to be.
    cfg.device = str(host.device)
    try:
        # Not host.read: in the midst of processing a bridge has no hooks.
        with torch.no_grad():
            return host.model(tokens.to(host.device)).double().log_softmax(-1)
    finally:
        cfg.device = meant


def _is_folded(host: AbstractHost, layer: int) -> bool:
    """Whether nothing of the norm's gain and bias is left outside the MLP."""
    norm = host.mlp_norm(layer)
    plain = norm.gain is None or bool((norm.gain == 1).all())
    return norm.exists and plain and (norm.bias is None or not norm.bias.any())


def _put_inputs_(host: AbstractHost, layer: int, weights: QuadraticMap) -> None:
    mlp = host.model.blocks[layer].mlp
    with torch.no_grad():
        mlp.W_gate.copy_(weights.tensor.left)
        mlp.W_in.copy_(weights.tensor.right)
        for name, bias in (("gate", weights.left_bias), ("in", weights.right_bias)):
            _put_bias_(mlp, name, bias)


def _put_output_(host: AbstractHost, layer: int, weights: QuadraticMap) -> None:
    W_out = host.model.blocks[layer].mlp.W_out
    raw = weights.tensor.out.to(W_out).mT
    # Processing rounds float64 to float32; any larger change is centring, along whichever axis.
    rounding = 1e-5 * float(raw.abs().max())
    centred = not torch.allclose(raw, W_out, rtol=0, atol=rounding)
    with torch.no_grad():
        W_out.copy_(raw - raw.mean(-1, keepdim=True) if centred else raw)


def _put_bias_(mlp: Any, name: str, bias: Float[Tensor, " rank"]) -> None:
    try:
        present = getattr(mlp, f"b_{name}")
    except (AttributeError, TypeError):
        present = None
    if present is not None:
        present.copy_(bias)
    elif bias.any() and hasattr(mlp, name):  # not TransformerLens' GatedMLP: that one is refused
        linear = getattr(mlp, name).original_component
        linear.bias = nn.Parameter(bias.to(linear.weight))


def _reason(host: AbstractHost) -> str:
    cfg = host.model.cfg
    gates = [host.gate(layer) for layer in range(host.n_layers)] if host.frozen_gates else []
    odd = [gate.name for gate in gates if gate is not None and gate.activation not in PROCESSED]
    if odd:
        return f"a bridge then computes SiLU for every gate that it does not know ({odd[0]})"
    if getattr(cfg, "final_rms", False) and str(cfg.normalization_type).startswith("LN"):
        return "it folds a final RMSNorm (final_rms=True) as if it were a LayerNorm"
    if host.d_vocab == host.d_model:
        return "it takes the wrong axis of a square unembedding (d_vocab == d_model)"
    if host.d_mlp == host.d_model:
        return "it takes the wrong axis of square matrices (d_mlp == d_model)"
    return "the cause is not one that we know of, please report it"
