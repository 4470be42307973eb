"""Every transformers class that can be bilinear, on every host: exact, checked, attributed.

`make parity` prints the whole table; here is one shape per family.
"""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import BIASES, FAMILIES, bridge_of, family, log_probabilities, process_
from models import hosts, logits_of, save

import tl_bilinear as tlb
from tl_bilinear.hosts.logits_at import logits_at
from tl_bilinear.hosts.self_check import relative_error

POST_NORM = {"Gemma 2", "Gemma 3", "OLMo2"}
MODES = ("raw", "folded")  # "compat" (hooks only, nothing folded) is in the table


def tokens_of(pos: int = 12) -> torch.Tensor:
    return torch.randint(0, 40, (3, pos), generator=torch.Generator().manual_seed(7))


# A HookedTransformer as it is loaded is compared with the bridge in test_hooked_families.py.
CASES = [(name, mode, host) for name in FAMILIES for mode in MODES for host in hosts()]
CASES = [case for case in CASES if case[1:] != ("raw", "hooked_transformer")]


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request, tmp_path_factory) -> Any:
    """A family's model, loaded from a folder as a user would."""
    name, mode, host = request.param
    reference = family(name, **BIASES.get(name, {}))
    folder = save(copy.deepcopy(reference), tmp_path_factory.mktemp("family"))
    model = process_(tlb.load(folder, host=host), mode)
    return SimpleNamespace(name=name, mode=mode, host=host, reference=reference, model=model)


def test_log_probabilities_equal_hugging_face(case):
    tokens = tokens_of()
    found, expected = (log_probabilities(m, tokens) for m in (case.model, case.reference))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_self_check_passes(case):
    check = tlb.self_check(case.model, reference=logits_of(case.reference))
    assert check.largest_error < 1e-5
    assert check.host.lower() == case.host.replace("_", "")


def test_logits_of_a_few_positions_are_those_of_all(case):
    """And so are their gradients; the model is as it was behind it."""
    host, tokens = tlb.get_host(case.model), tokens_of()
    row, pos = torch.tensor([2, 0, 2, 2]), torch.tensor([3, 11, 0, 3])
    weight = next(iter(host.model.parameters()))  # of the embedding: all layers lie between
    found = []
    with torch.enable_grad():
        for logits in (logits_at(host, tokens, row, pos), case.model(tokens)[row, pos]):
            odds = logits.log_softmax(-1)[:, 7].sum()
            (gradient,) = torch.autograd.grad(odds, [weight])
            found.append((logits.detach(), gradient))
    for few, whole in zip(*found, strict=True):
        torch.testing.assert_close(few, whole, rtol=1e-4, atol=1e-5)
    assert case.model(tokens).shape == (3, 12, 40)


def test_norms_are_where_the_family_has_them(case):
    host = tlb.get_host(case.model)
    assert host.mlp_norm(1).exists == (case.name != "OLMo2")
    assert host.mlp_norm(1).centred == (case.name == "StableLM")
    assert host.mlp_post_norm(1).exists == (case.name in POST_NORM)
    assert host.attention_post_norm(1).exists == (case.name in POST_NORM)
    assert (host.logit_softcap is not None) == (case.name == "Gemma 2")
    if case.name == "OLMo2" and case.host == "transformer_bridge":
        assert host.mlp_input_site(1) == "blocks.1.mlp.hook_in"
        streams = host.read(tokens_of(), ["blocks.1.hook_resid_mid", "blocks.1.mlp.hook_in"])[1]
        assert torch.equal(*streams.values())


def test_the_embedding_is_what_enters_the_stream(case):
    """Gemma's factor included, wherever the host keeps it."""
    host = tlb.get_host(case.model)
    tokens = tokens_of()
    _, cache = host.read(tokens, [host.embedding_site()])
    assert torch.equal(cache[host.embedding_site()], host.W_E[tokens])


def test_the_map_reproduces_the_mlp_in_float64(case):
    host = tlb.get_host(case.model)
    site, out = host.mlp_input_site(1), host.mlp_out_site(1)
    _, cache = host.read(tokens_of(), [site, out])
    weights = host.mlp_map(1).to(torch.float64)
    x = cache[site].double()
    assert relative_error(weights(x), cache[out]) < 1e-5
    dense = torch.einsum("oij,bpi,bpj->bpo", weights.tensor.to_dense(), x, x)
    torch.testing.assert_close(weights.quadratic(x), dense, rtol=1e-9, atol=1e-9)


def test_attribution_closes_on_the_logit_before_any_softcap(case):
    parts = tlb.attribute_components(case.model, tokens_of(), 5)
    assert parts.discrepancy.abs().max() < 1e-5
    modes = tlb.attribute_modes(case.model, tokens_of(), 5, k=None)
    torch.testing.assert_close(modes.shares, parts.mlps, rtol=1e-5, atol=1e-5)
    assert modes.remainder.abs().max() < 1e-9  # all modes were kept
    with torch.no_grad():
        logit = case.model(tokens_of())[:, -1, 5].double()
    cap = tlb.get_host(case.model).logit_softcap
    target = parts.target[:, 0]
    expected = target if cap is None else cap * (target / cap).tanh()
    torch.testing.assert_close(expected, logit, rtol=1e-5, atol=1e-5)
    assert ("post-norms' denominators" in parts.provenance.frozen) == (case.name in POST_NORM)


@pytest.mark.parametrize("name", ["Gemma 2", "OLMo2"])
def test_a_cache_and_a_prompt_give_the_same_attribution(name):
    bridge = bridge_of(family(name), name)
    from_tokens = tlb.attribute_components(bridge, tokens_of(), 5)
    _, cache = bridge.run_with_cache(tokens_of())
    from_cache = tlb.attribute_components(bridge, cache, 5)
    torch.testing.assert_close(from_cache.mlps, from_tokens.mlps, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(from_cache.target, from_tokens.target, rtol=1e-4, atol=1e-4)


def test_ablating_a_mode_takes_out_what_was_attributed_to_it(case):
    host = tlb.get_host(case.model)
    modes = tlb.attribute_modes(host, tokens_of(), 5)
    mode = modes.mode(1, 0)
    site = host.mlp_out_site(1)
    before = host.read(tokens_of(), [site])[1][site].double()
    with tlb.ablate(host, mode):
        after = host.read(tokens_of(), [site])[1][site].double()
    along = modes.mlp_directions[1, 0]
    lost = ((before - after) @ along)[:, -1]
    foreseen = modes.eigenvalues[1, 0, 0] * modes.activations[1, :, 0, 0] ** 2
    torch.testing.assert_close(lost, foreseen, rtol=1e-4, atol=1e-5)
    if case.name not in POST_NORM:
        assert torch.equal(along, modes.directions[0])


@pytest.mark.parametrize("name", ["Gemma 2", "Gemma 3"])
def test_the_built_activation_decides_and_no_configuration_key(name):
    """Both read hidden_activation; a hidden_act beside it means nothing."""
    misleading = family(name, "gelu_pytorch_tanh", hidden_act="linear")
    with pytest.raises(tlb.NotBilinearError, match="GELU activation"):
        tlb.self_check(bridge_of(misleading, name))
    bilinear = family(name, "linear", hidden_act="gelu_pytorch_tanh")
    bridge = process_(bridge_of(copy.deepcopy(bilinear), name), "folded")
    tlb.self_check(bridge, reference=logits_of(bilinear))


@pytest.mark.parametrize("name", FAMILIES)
def test_gated_models_of_the_same_classes_are_left_alone(name):
    reference = family(name, "silu")
    bridge = process_(bridge_of(copy.deepcopy(reference), name), "folded")
    found, expected = (log_probabilities(m, tokens_of()) for m in (bridge, reference))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    with pytest.raises(tlb.NotBilinearError, match="SiLU"):
        tlb.self_check(bridge)


def test_automatic_choice_takes_the_bridge_for_everything_but_llama(tmp_path):
    model = tlb.load(save(family("Qwen3"), tmp_path / "qwen3"))
    assert tlb.get_host(model).kind == "TransformerBridge"


def test_a_family_whose_stream_has_multipliers_is_read_but_not_attributed():
    """Granite scales what its sublayers write: sums without the factor would be wrong."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformers import GraniteConfig, GraniteForCausalLM

    tlb.register()
    config = GraniteConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=40,
        hidden_act="linear",
        initializer_range=0.3,
        residual_multiplier=0.5,
        logits_scaling=2.0,
    )
    granite = GraniteForCausalLM(config).eval()
    bridge = build_bridge_from_module(
        copy.deepcopy(granite), "GraniteForCausalLM", hf_config=config
    )
    tlb.self_check(bridge, reference=logits_of(granite))
    for attribute in (tlb.attribute_modes, tlb.attribute_components):
        with pytest.raises(ValueError, match="Granite models cannot be attributed: .* multiplier"):
            attribute(bridge, tokens_of(), 5)
