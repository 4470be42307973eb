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
from families import FAMILIES, bridge_of, family, process_
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
def test_native_models_agree_with_each_other(norm):
    """The same weights in a HookedTransformer and in a native bridge."""
    models = [native(norm, host, torch.float32) for host in hosts()]
    plain = [model(TOKENS).detach() for model in models]
    found = [logits_with(model) for model in models]
    assert all((a - b).abs().max() > 0.1 for a, b in zip(plain, found, strict=True))
    if len(models) == 2:
        pytest.importorskip("transformer_lens")
