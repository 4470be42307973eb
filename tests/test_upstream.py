"""TransformerLens' defects that we work around (docs/upstream.md), without the work-around.

A failure here is good news: the defect is mended in the installed version, and what the
message names can go once every supported version is mended.
"""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import bridge_of, family, hooked_of, log_probabilities
from families import process_ as process_family_
from models import hosts, native, process_, tiny_llama

import tl_bilinear as tlb

HOOKED = "hooked_transformer" in hosts()


@pytest.fixture
def unguarded(monkeypatch):
    """Upstream's weight processing as it is, without `hosts/folding.py`."""
    from transformer_lens.model_bridge import TransformerBridge

    tlb.register()
    guarded: list[tuple[Any, str]] = [(TransformerBridge, "process_weights")]
    if HOOKED:
        from transformer_lens import HookedTransformer

        guarded.append((HookedTransformer, "load_and_process_state_dict"))
    for owner, name in guarded:
        monkeypatch.setattr(owner, name, plain(getattr(owner, name).__wrapped__))


def plain(upstream: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return upstream(*args, **kwargs)

    run._tl_bilinear = True  # so that `register` does not guard it again
    return run


def drift(host: str, norm: str, **options) -> float:
    model = native(norm, host, torch.float32, **options)
    tokens = torch.randint(
        0, model.cfg.d_vocab, (2, 12), generator=torch.Generator().manual_seed(2)
    )
    with torch.no_grad():
        before = model(tokens).log_softmax(-1)
        process_(model, host)
        return float((model(tokens).log_softmax(-1) - before).abs().max())


def test_1_unknown_activations_become_silu():
    from transformer_lens.model_bridge.generalized_components.gated_mlp import (
        resolve_activation_fn,
    )

    activation = resolve_activation_fn(SimpleNamespace(hidden_act="linear"))
    x = torch.tensor([-2.0, 3.0])
    mended = "resolve_activation_fn knows or refuses 'linear': see BilinearForward"
    assert torch.equal(activation(x), torch.nn.functional.silu(x)), mended


@pytest.mark.skipif(not HOOKED, reason="TransformerLens 4.x has no HookedTransformer")
def test_2_gated_mlp_adds_b_in_behind_the_product():
    from transformer_lens.components.mlps.gated_mlp import GatedMLP

    mlp = GatedMLP(native("RMS", "hooked_transformer", torch.float32).cfg)
    assert not hasattr(mlp, "b_gate"), "GatedMLP has b_gate: see BilinearMLP"
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.fill_(1.0)
        gate = torch.ones(1, 1, 16) @ mlp.W_gate
        behind = (gate * (torch.ones(1, 1, 16) @ mlp.W_in) + mlp.b_in) @ mlp.W_out + mlp.b_out
        assert torch.equal(mlp(torch.ones(1, 1, 16)), behind), "b_in moved: see BilinearMLP"


@pytest.mark.parametrize("host", hosts())
def test_3_square_mlps_are_processed_along_the_wrong_axis(host, unguarded):
    mended = "square MLPs are right: _put_inputs_ and _put_output_ of hosts/folding.py can go"
    assert drift(host, "LN", d_mlp=16) > 0.1, mended


@pytest.mark.skipif(not HOOKED, reason="mended in TransformerLens 4.x")
@pytest.mark.parametrize("host", hosts())
def test_4_a_final_rms_norm_is_folded_as_a_layer_norm(host, unguarded):
    assert drift(host, "LN", final_rms=True) > 0.1, "final_rms is right: see _reason"


@pytest.mark.parametrize("host", hosts())
def test_5_square_unembeddings_are_folded_along_the_wrong_axis(host, unguarded):
    assert drift(host, "RMS", d_vocab=16) > 0.1, "square unembeddings are right: see _reason"


def test_6_value_biases_under_grouped_query_attention_end_in_a_shape_error(unguarded):
    bridge = bridge_of(family("OLMo2", attention_bias=True), "OLMo2")
    with pytest.raises(RuntimeError, match="shape .* is invalid"):
        process_family_(bridge, "folded")


def test_7_hook_names_that_do_not_exist():
    """3.9's bridge ignores them; 4.x raises, as our hosts do on both."""
    bridge = bridge_of(copy.deepcopy(tiny_llama()), "Llama")
    hooks = [("blocks.0.hook_typo", lambda value, hook: 0 * value)]
    tokens = torch.randint(0, 40, (1, 4))
    if HOOKED:
        with torch.no_grad():
            ignored = bridge.run_with_hooks(tokens, fwd_hooks=hooks)
            assert torch.equal(ignored, bridge(tokens)), "see AbstractHost.require_sites"
    else:
        with pytest.raises(KeyError):
            bridge.run_with_hooks(tokens, fwd_hooks=hooks)
    with pytest.raises(KeyError, match="no hook named"):
        tlb.get_host(bridge).hooks(hooks)


@pytest.mark.skipif(not HOOKED, reason="TransformerLens 4.x has no HookedTransformer")
@pytest.mark.parametrize(("name", "least"), [("OLMo2", 0.1), ("Gemma 2", 1e-3)])
def test_8_processing_in_place_folds_norms_that_stand_behind(name, least, unguarded):
    reference = family(name)
    model = hooked_of(copy.deepcopy(reference))
    model.process_weights_()
    tokens = torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(2))
    change = log_probabilities(model, tokens) - log_probabilities(reference, tokens)
    mended = "process_weights_ is right: see _without_what_is_no_identity of hosts/folding.py"
    assert change.abs().max() > least, mended


@pytest.mark.skipif(not HOOKED, reason="TransformerLens 4.x has no HookedTransformer")
def test_9_converters_drop_biases():
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights

    llama = tiny_llama()
    state = convert_llama_weights(llama, hooked_of(copy.deepcopy(llama)).cfg)
    assert llama.model.layers[0].mlp.up_proj.bias.any()
    lost = ("blocks.0.mlp.b_in", "blocks.0.mlp.b_out", "blocks.0.attn.b_Q")
    assert not any(state[name].any() for name in lost), "biases are read: see hosts/hooked"
