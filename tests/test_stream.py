"""The same edit of the stream gives the same logits on every host, and gradients pass through.

The twin is a plain-PyTorch forward pass: transformers' own attentions, MLPs and norms, put
together here from each family's description.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from families import FAMILIES, bridge_of, family, hooked_of, process_
from models import hosts, native, tiny_llama
from torch import Tensor

import tl_bilinear as tlb
from tl_bilinear.hosts.boot import boot
from tl_bilinear.hosts.stream import Where, edit_stream

TOKENS = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(4))
Edits = dict[tuple[int, Where], Callable[[Tensor], Tensor]]

# Not additive, so that an edit of a copy, at another place or in another order shows.
EDITS: Edits = {
    (0, "pre"): lambda stream: stream + 0.3 * stream.roll(1, -1),
    (0, "mid"): lambda stream: stream * stream[:, :1].sigmoid(),
    (1, "mid"): lambda stream: stream - 0.7 * stream.roll(3, -1),
    (1, "post"): lambda stream: 0.5 * stream.roll(2, -1),
}


def by_hand(model: Any, tokens: Tensor, edits: Edits) -> Tensor:
    """Logits of a transformers model whose stream is edited, block by block."""
    given: list[tuple[Tensor, dict[str, Any]]] = []

    def keep(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        given.append((args[0], {**kwargs, "past_key_values": None}))

    layers = model.model.layers
    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    with torch.no_grad():
        model(tokens)
        for handle in handles:
            handle.remove()
        stream = given[0][0]
        for index, (layer, (_, kwargs)) in enumerate(zip(layers, given, strict=True)):
            stream = edits.get((index, "pre"), torch.clone)(stream)
            stream = stream + attended(layer, stream, kwargs)
            stream = edits.get((index, "mid"), torch.clone)(stream)
            stream = stream + mlp_of(layer, stream)
            stream = edits.get((index, "post"), torch.clone)(stream)
        logits = model.lm_head(model.model.norm(stream))
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * (logits / cap).tanh()


def attended(layer: Any, stream: Tensor, kwargs: dict[str, Any]) -> Tensor:
    before = getattr(layer, "input_layernorm", None)  # OLMo2 has none
    read = stream if before is None else before(stream)
    out = layer.self_attn(hidden_states=read, **kwargs)[0]
    # Where another norm stands before the MLP, this one belongs to the attention.
    return layer.post_attention_layernorm(out) if has_post_norms(layer) else out


def mlp_of(layer: Any, stream: Tensor) -> Tensor:
    if not has_post_norms(layer):
        return layer.mlp(layer.post_attention_layernorm(stream))
    before = getattr(layer, "pre_feedforward_layernorm", None)
    out = layer.mlp(stream if before is None else before(stream))
    return layer.post_feedforward_layernorm(out)


def has_post_norms(layer: Any) -> bool:
    return hasattr(layer, "post_feedforward_layernorm")


@contextmanager
def edited(model: Any, edits: Edits = EDITS) -> Iterator[None]:
    with ExitStack() as stack:
        for (layer, where), edit in edits.items():
            stack.enter_context(edit_stream(model, layer, where, edit))
        yield


def logits_with(model: Any, edits: Edits = EDITS) -> Tensor:
    with torch.no_grad(), edited(model, edits):
        return model(TOKENS)


def require_equal(found: Tensor, expected: Tensor) -> None:
    """Up to what centring the unembedding takes from all logits alike."""
    found, expected = found.log_softmax(-1), expected.log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("mode", ["raw", "compat"])
def test_every_family_on_the_bridge(name, mode):
    model = family(name)
    expected = by_hand(model, TOKENS, EDITS)
    torch.testing.assert_close(by_hand(model, TOKENS, {}), model(TOKENS).logits.detach())
    assert (by_hand(model, TOKENS, {}) - expected).abs().max() > 0.1
    bridge = process_(bridge_of(copy.deepcopy(model), name), mode)
    require_equal(logits_with(bridge), expected)
    # The order in which edits are entered does not matter, nor do they stay.
    require_equal(logits_with(bridge, dict(reversed(EDITS.items()))), expected)
    with torch.no_grad():
        require_equal(bridge(TOKENS), model(TOKENS).logits)


@pytest.mark.skipif("hooked_transformer" not in hosts(), reason="4.x has no HookedTransformer")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_in_a_hooked_transformer(name):
    model = family(name)
    expected = by_hand(model, TOKENS, EDITS)
    require_equal(logits_with(hooked_of(copy.deepcopy(model))), expected)


@pytest.mark.parametrize("folded", [False, True], ids=["raw", "folded"])
@pytest.mark.parametrize("host", hosts())
def test_a_llama_on_every_host(host, folded):
    model = tiny_llama()
    expected = by_hand(model, TOKENS, EDITS)
    booted = boot(copy.deepcopy(model), None, "tiny", host)
    if folded:
        booted.process_weights_() if host == "hooked_transformer" else process_(booted, "folded")
    require_equal(logits_with(booted), expected)


@pytest.mark.parametrize("norm", ["LN", "RMS", None])
@pytest.mark.parametrize("host", hosts())
def test_native_models_in_float64(host, norm):
    """Against the blocks' own attention and MLP, as norms and sublayers are put together."""
    model = native(norm, host)
    view = tlb.get_host(model)
    reads = [f"blocks.{i}.hook_{name}" for i in (0, 1) for name in ("resid_mid", "resid_post")]
    with edited(model):
        _, cache = view.read(TOKENS, [*reads, *(view.mlp_input_site(i) for i in (0, 1))])
    for layer in (0, 1):
        mid = cache[f"blocks.{layer}.hook_resid_mid"]
        normed = view.mlp_norm(layer).normalize(mid)
        torch.testing.assert_close(cache[view.mlp_input_site(layer)], normed, rtol=1e-6, atol=1e-6)
        after = mid + view.mlp_map(layer)(cache[view.mlp_input_site(layer)])
        after = EDITS.get((layer, "post"), torch.clone)(after)
        post = cache[f"blocks.{layer}.hook_resid_post"]
        torch.testing.assert_close(post, after, rtol=1e-6, atol=1e-6)
    # An edit between attention and MLP is an edit of the stream: the block passes it on.
    delta = torch.randn(16, dtype=torch.float64)
    with edit_stream(model, 0, "mid", lambda stream: stream + delta):
        _, moved = view.read(TOKENS, ["blocks.0.hook_resid_post", view.mlp_out_site(0)])
    _, still = view.read(TOKENS, ["blocks.0.hook_resid_post", view.mlp_out_site(0)])
    passed = [c["blocks.0.hook_resid_post"] - c[view.mlp_out_site(0)] for c in (moved, still)]
    torch.testing.assert_close(passed[0], passed[1] + delta)


def test_what_cannot_be_edited_is_refused(unchecked):
    model = family("StableLM", use_parallel_residual=True)
    bridge = bridge_of(model, "StableLM")
    with pytest.raises(ValueError, match="they stand in parallel"):
        with edit_stream(bridge, 0, "mid", torch.clone):
            pass
    with edit_stream(bridge, 0, "post", torch.clone):
        bridge(TOKENS)
    bridge = bridge_of(tiny_llama(), "Llama")
    with pytest.raises(ValueError, match='"pre", "mid" or "post", got \'middle\''):
        with edit_stream(bridge, 0, "middle", torch.clone):  # pyright: ignore
            pass
    with pytest.raises(ValueError, match="`layer` 2 is out of range"):
        with edit_stream(bridge, 2, "mid", torch.clone):
            pass
    with pytest.raises(RuntimeError, match="never ran the stream of layer 1, mid"):
        with edit_stream(bridge, 1, "mid", torch.clone):
            pass
    blocks = bridge.blocks[1]
    assert not blocks.attn._forward_hooks, "a module hook stayed"


@pytest.mark.parametrize("multiplier", [0.5, 1.0])
def test_a_block_that_scales_its_attention_is_refused(multiplier):
    """Granite, whatever its multiplier is: TransformerLens' block has no attention hook to edit."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=40,
        hidden_act="linear",
        residual_multiplier=multiplier,
    )
    tlb.register()
    granite = GraniteForCausalLM(config).eval()
    bridge = build_bridge_from_module(granite, "GraniteForCausalLM", hf_config=config)
    with pytest.raises(ValueError, match="scales what its attention writes|does not add what"):
        with edit_stream(bridge, 0, "mid", torch.clone):
            pass
    with edit_stream(bridge, 0, "pre", torch.clone):
        bridge(TOKENS)
