"""Annealing is exact at both ends, folding keeps the logits, unsuitable models are named."""

import math

import pytest
import torch
from families import FAMILIES
from families import family as gated_family
from gated import TOKENS, assert_is_bilinear, log_probs, tiny_config, tiny_data, tiny_llama
from models import hosts, save
from transformers import LlamaForCausalLM


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh"])
def test_beta_one_is_the_original_model(activation):
    from tl_bilinear.conversion import anneal_

    model = tiny_llama(activation).double()
    before = log_probs(model, TOKENS)
    anneal_(model)
    torch.testing.assert_close(log_probs(model, TOKENS), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("beta", [1e-3, 0.3, 1.7])
def test_gate_is_activation_of_beta_g_over_beta(activation, beta):
    from transformers.activations import ACT2FN

    from tl_bilinear.conversion import AnnealedGate

    gate = torch.linspace(-20, 20, 101, dtype=torch.float64)
    expected = ACT2FN[activation](beta * gate) / beta
    torch.testing.assert_close(AnnealedGate(activation, beta)(gate), expected)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_new"])
def test_beta_zero_is_half_the_gate_exactly(activation):
    from tl_bilinear.conversion import AnnealedGate

    gate = torch.randn(7, 5) * 1e3
    assert torch.equal(AnnealedGate(activation, 0.0)(gate), gate / 2)


def test_beta_comes_back_from_zero():
    """At 0 the gate takes a shortcut; it must not stay on it."""
    from tl_bilinear.conversion import AnnealedGate

    gate, annealed = torch.randn(7, 5), AnnealedGate("silu", 0.3)
    expected = annealed(gate)
    annealed.set_beta_(0.0)
    assert torch.equal(annealed(gate), gate * torch.sigmoid(0.0 * gate))
    annealed.set_beta_(0.3)
    assert torch.equal(annealed(gate), expected) and not torch.equal(expected, gate / 2)


def test_small_beta_approaches_the_folded_model():
    from tl_bilinear.conversion import anneal_, fold_gate_, set_beta_

    model = tiny_llama().double()
    anneal_(model, beta=0.0)
    folded = tiny_llama().double()
    anneal_(folded, beta=0.0)
    fold_gate_(folded)
    target, errors = log_probs(folded, TOKENS), []
    for beta in (0.1, 0.01, 0.001):
        set_beta_(model, beta)
        errors.append((log_probs(model, TOKENS) - target).abs().max().item())
    assert errors[0] > 5 * errors[1] > 25 * errors[2] > 0  # first order in beta
    set_beta_(model, 1e-300)
    torch.testing.assert_close(log_probs(model, TOKENS), target, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mlp_bias", [False, True])
def test_fold_keeps_the_logits_and_survives_a_folder(mlp_bias, tmp_path):
    from tl_bilinear.conversion import anneal_, fold_gate_

    model = tiny_llama(mlp_bias=mlp_bias)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    names = list(model.state_dict())
    anneal_(model, beta=0.0)
    before = model(TOKENS).logits
    fold_gate_(model)
    assert model.config.hidden_act == "linear"
    assert list(model.state_dict()) == names
    assert torch.equal(model(TOKENS).logits, before)
    model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(TOKENS).logits, before)
    assert_is_bilinear(loaded.get_submodule("model.layers.0.mlp"), torch.randn(3, 16))


@pytest.mark.parametrize("name", ["linear", "cosine", "exponential", "logistic", "smootherstep"])
def test_schedules_fall_from_one_to_zero(name):
    from tl_bilinear.conversion import beta_at

    betas = [beta_at(step, 100, 0.3, name) for step in range(101)]
    assert betas[0] == 1
    falls = [a - b for a, b in zip(betas, betas[1:31], strict=False)]
    assert all(fall >= 0 for fall in falls) and all(fall > 0 for fall in falls[5:])
    assert betas[30:] == [0.0] * 71


def test_schedules_by_their_formulas():
    from tl_bilinear.conversion import beta_at

    assert beta_at(0, 100, 0.3, "abrupt") == 0
    assert beta_at(15, 100, 0.3, "linear") == 0.5
    for symmetric in ("cosine", "logistic", "smootherstep"):
        assert math.isclose(beta_at(15, 100, 0.3, symmetric), 0.5)
    assert math.isclose(beta_at(15, 100, 0.3, "exponential"), 0.5 * math.exp(0.525))
    with pytest.raises(ValueError, match="expected one of linear, cosine, exponential"):
        beta_at(0, 10, 0.3, "step")
    with pytest.raises(ValueError, match="fraction above 0"):
        beta_at(0, 10, 0.0)


@pytest.mark.parametrize("mlp_bias", [False, True])
def test_learned_scales_are_folded_into_the_gate(mlp_bias):
    from tl_bilinear.conversion import anneal_, fold_gate_

    model = tiny_llama(mlp_bias=mlp_bias).double()
    names = list(model.state_dict())
    gates = anneal_(model, beta=0.0, learned_scale=True)
    before = log_probs(model, TOKENS)
    for gate in gates:
        assert gate.scale is not None
        torch.nn.init.uniform_(gate.scale, 0.5, 2.0)
    scaled = log_probs(model, TOKENS)
    assert (scaled - before).abs().max() > 1e-2
    fold_gate_(model)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(log_probs(model, TOKENS), scaled, rtol=1e-12, atol=1e-12)


def test_unsuitable_activations_are_refused():
    from tl_bilinear.conversion import AnnealedGate, bilinearize

    with pytest.raises(ValueError, match="'relu' cannot be annealed: expected one of silu"):
        AnnealedGate("relu")
    with pytest.raises(ValueError, match="bilinear already"):
        bilinearize(tiny_llama("linear"), tiny_data(), tiny_config(), progress=False)
    with pytest.raises(ValueError, match="finite number from 0"):
        AnnealedGate("silu", -0.1)
    with pytest.raises(ValueError, match="finite number from 0"):
        AnnealedGate("silu", float("nan"))


def test_models_without_gated_mlps_are_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    from tl_bilinear.conversion import anneal_, set_beta_

    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no gated MLP"):
        anneal_(model)
    with pytest.raises(ValueError, match=r"call anneal_\(model\) first"):
        set_beta_(model, 0.0)


@pytest.mark.parametrize("family", ["Qwen2Moe", "Mixtral"])
def test_experts_are_refused(family):
    import transformers

    from tl_bilinear.conversion import anneal_

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "vocab_size": 20}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(**sizes, **heads, eos_token_id=2)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with pytest.raises(ValueError, match=f"{family}ForCausalLM has (no gated|activations in)"):
        anneal_(model)


def test_tied_gates_are_refused():
    from tl_bilinear.conversion import anneal_

    model = tiny_llama()
    first, second = (model.get_submodule(f"model.layers.{i}.mlp") for i in range(2))
    second.gate_proj.weight = first.gate_proj.weight  # pyright: ignore
    with pytest.raises(ValueError, match="MLPs 0 and 1 of LlamaForCausalLM share a weight"):
        anneal_(model)
    model = tiny_llama()
    mlp = model.get_submodule("model.layers.1.mlp")
    mlp.up_proj.weight = mlp.gate_proj.weight  # pyright: ignore
    with pytest.raises(ValueError, match="MLPs 1 and 1 of LlamaForCausalLM share a weight"):
        anneal_(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_converts_and_loads_on_its_hosts(family, tmp_path):
    """End to end: distilled, folded, saved, loaded by transformers and into TransformerLens."""
    from transformers import AutoModelForCausalLM

    import tl_bilinear as tlb

    model = gated_family(family, "silu")
    student = tlb.bilinearize(
        model, tiny_data(), tiny_config(learned_scale=True), out_folder=tmp_path, progress=False
    )
    again = AutoModelForCausalLM.from_pretrained(save(student, tmp_path / "model")).eval()
    assert type(again) is type(model)
    torch.testing.assert_close(again(TOKENS).logits, student(TOKENS).logits, rtol=1e-5, atol=1e-5)
    for host in hosts():
        if host == "hooked_transformer" and family != "Llama":
            continue
        tlb.self_check(tlb.load(tmp_path / "model", host=host))


def test_folding_before_the_end_is_refused():
    from tl_bilinear.conversion import anneal_, fold_gate_

    model = tiny_llama()
    with pytest.raises(ValueError, match="not an AnnealedGate"):
        fold_gate_(model)
    anneal_(model, beta=0.25)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="beta 0.25: only beta 0 is linear"):
        fold_gate_(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
