"""Every host computes what transformers computes, and what the host's weights say it computes."""

import subprocess
import sys

import pytest
import torch
from models import hosts, logits_of, native, process_, save, tiny_llama

import tl_bilinear as tlb
from tl_bilinear.checkpoints.bundled import ZOO
from tl_bilinear.hosts.self_check import relative_error

SHAPES = {
    "biases and GQA": {},
    "no biases": {"mlp_bias": False, "attention_bias": False},
    "all heads": {"num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True},
    "d_mlp below d_model": {"intermediate_size": 12},
    "d_mlp equal to d_model": {"intermediate_size": 16},
    "d_head not d_model / n_heads": {"head_dim": 6},
}


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("processed", [False, True], ids=["raw", "processed"])
def test_log_probabilities_equal_hugging_face(host, shape, processed, tmp_path):
    reference = tiny_llama(**SHAPES[shape])
    model = tlb.load(save(reference, tmp_path / "llama"), host=host)
    if processed:
        process_(model, host)
    tokens = torch.randint(0, 40, (3, 20))
    with torch.no_grad():
        found, expected = model(tokens).log_softmax(-1), reference(tokens).logits.log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert tlb.self_check(model, reference=logits_of(reference)).largest_error < 1e-5


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("processed", [False, True], ids=["raw", "processed"])
def test_story_model_equals_hugging_face(host, processed):
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(ZOO / "stories-5l").eval()
    model = tlb.load("stories-5l", host=host)
    if processed:
        process_(model, host)
    tokens = model.to_tokens("Once upon a time, there was a little girl named Lily. She")
    with torch.no_grad():
        found, expected = model(tokens).log_softmax(-1), reference(tokens).logits.log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("host", hosts())
def test_raw_logits_are_those_of_hugging_face(host, tmp_path):
    reference = tiny_llama()
    model = tlb.load(save(reference, tmp_path / "llama"), host=host)
    tokens = torch.randint(0, 40, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), reference(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("norm", ["LN", "RMS", "LNPre", "RMSPre", None])
def test_forward_is_quadratic_plus_linear_plus_constant(host, norm):
    """In float64, on natively built models with every norm."""
    model = native(norm, host)
    view = tlb.get_host(model)
    tokens = torch.randint(0, 40, (2, 12))
    sites = [name for i in range(2) for name in (view.mlp_input_site(i), view.mlp_out_site(i))]
    _, cache = view.read(tokens, sites)
    # A native bridge's parameter-free and RMS norms compute in float32, as Hugging Face's do.
    exact = 1e-9 if host == "hooked_transformer" or norm in ("LN", None) else 1e-6
    for layer in range(2):
        x, out = cache[view.mlp_input_site(layer)], cache[view.mlp_out_site(layer)]
        weights = view.mlp_map(layer)
        parts = weights.quadratic(x) + weights.linear(x) + weights.constant()
        assert relative_error(parts, out) < exact
        dense = torch.einsum("oij,bpi,bpj->bpo", weights.tensor.to_dense(), x, x)
        assert relative_error(weights.quadratic(x), dense) < 1e-9
    assert tlb.self_check(model).largest_error < exact


@pytest.mark.parametrize("host", hosts())
def test_the_mlp_itself_is_exact_in_float64_behind_hugging_face_norms(host, tmp_path):
    model = tlb.load(save(tiny_llama(), tmp_path / "llama"), host=host, dtype=torch.float64)
    check = tlb.self_check(model)
    assert max(check.weight_errors) < 1e-9
    assert max(check.forward_errors) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("host", hosts())
def test_half_precision_loads_and_passes_its_check(host, dtype, tmp_path):
    model = tlb.load(save(tiny_llama(), tmp_path / "llama"), host=host, dtype=dtype)
    assert tlb.get_host(model).dtype == dtype


@pytest.mark.parametrize("norm", ["LN", "RMS"])
def test_folding_a_layer_norm_bias_is_exact_in_a_hooked_transformer(norm):
    """TransformerLens' own GatedMLP loses b_gate here, an error of several nats.

    The tolerance is single precision's: TransformerLens processes weights in float32.
    """
    if "hooked_transformer" not in hosts():
        pytest.skip("TransformerLens 4.x has no HookedTransformer")
    model = native(norm, "hooked_transformer")
    tokens = torch.randint(0, 40, (2, 12))
    with torch.no_grad():
        before = model(tokens).log_softmax(-1)
        model.process_weights_()
        torch.testing.assert_close(model(tokens).log_softmax(-1), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("host", hosts())
def test_state_dict_round_trip(host):
    model, other = native("RMS", host), native("RMS", host)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(model.state_dict())
    tokens = torch.randint(0, 40, (1, 8))
    with torch.no_grad():
        assert torch.equal(model(tokens), other(tokens))


def test_component_has_the_documented_parameters_and_hooks():
    if "hooked_transformer" not in hosts():
        pytest.skip("TransformerLens 4.x has no HookedTransformer")
    model = native("RMS", "hooked_transformer")
    mlp = model.blocks[0].mlp
    assert {name for name, _ in mlp.named_parameters()} == {
        "W_gate",
        "W_in",
        "W_out",
        "b_gate",
        "b_in",
        "b_out",
    }
    _, cache = model.run_with_cache(torch.randint(0, 40, (1, 5)))
    product = cache["blocks.0.mlp.hook_pre"] * cache["blocks.0.mlp.hook_pre_linear"]
    torch.testing.assert_close(product, cache["blocks.0.mlp.hook_post"])


def test_register_is_idempotent_and_guards_a_linear_mlp():
    tlb.register()
    if "hooked_transformer" not in hosts():
        pytest.skip("TransformerLens 4.x has no HookedTransformer")
    from transformer_lens.factories.mlp_factory import MLPFactory

    before = MLPFactory.create_mlp
    tlb.register()
    assert MLPFactory.create_mlp is before
    with pytest.raises(ValueError, match="without a gate the MLP would be linear"):
        native("RMS", "hooked_transformer", gated_mlp=False)


def test_other_gates_are_left_alone(tmp_path):
    reference = tiny_llama("silu", mlp_bias=False)
    for host in hosts():
        model = tlb.load(save(reference, tmp_path / host), host=host, check=False)
        process_(model, host)
        tokens = torch.randint(0, 40, (2, 9))
        with torch.no_grad():
            found = model(tokens).log_softmax(-1)
            expected = reference(tokens).logits.log_softmax(-1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


UNIMPORTED = """
import sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformer_lens.model_bridge.sources import build_bridge_from_module
config = LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                     num_attention_heads=2, vocab_size=30, hidden_act="linear",
                     initializer_range=0.3)
llama = LlamaForCausalLM(config).eval()
tokens = torch.randint(0, 30, (1, 6))
expected = llama(tokens).logits.log_softmax(-1)
bridge = build_bridge_from_module(llama, "LlamaForCausalLM", hf_config=config)
bridge.enable_compatibility_mode()
print(float((bridge(tokens).log_softmax(-1) - expected).abs().max()))
"""


def test_the_entry_point_works_where_tl_bilinear_is_not_imported():
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:transformer_lens", "-c", UNIMPORTED],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(result.stdout.split()[-1]) < 1e-4


@pytest.mark.parametrize("host", hosts())
def test_weights_are_live(host):
    model = native("RMS", host)
    view = tlb.get_host(model)
    with torch.no_grad():
        model.blocks[0].mlp.W_out.mul_(2)
    tlb.self_check(model)
    doubled = view.mlp_tensor(0).norm()
    with torch.no_grad():
        model.blocks[0].mlp.W_out.mul_(0.5)
    torch.testing.assert_close(2 * view.mlp_tensor(0).norm(), doubled)


def test_tokens_and_their_texts_are_the_same_on_every_host():
    text = 'Lily said, "Hi!"\nTom ran.'
    found = []
    for host in hosts():
        view = tlb.get_host(tlb.load("stories-5l", host=host))
        tokens = view.to_tokens(text)
        found.append(tokens.tolist())
        assert view.str_tokens(tokens)[:4] == ["<s>", " Lily", " said", ","]
        assert "\n" in view.str_tokens(tokens)
    assert all(tokens == found[0] for tokens in found)


def test_get_host_names_what_it_was_given():
    with pytest.raises(ValueError, match="got Linear: load one with tl_bilinear.load"):
        tlb.get_host(torch.nn.Linear(2, 2))
    view = tlb.get_host(native("RMS", hosts()[0]))
    assert tlb.get_host(view) is view
    with pytest.raises(ValueError, match="`layer` 2 is out of range: this model has 2 layers"):
        view.mlp_tensor(2)
    with pytest.raises(KeyError, match="no hook named"):
        view.read(torch.zeros(1, 2, dtype=torch.long), ["blocks.0.hook_typo"])
