"""Seeded faults: the self-check misses none, and names layer, cause and way out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import hosts, logits_of, native, save, tiny_llama, word_tokenizer

import tl_bilinear as tlb
from tl_bilinear import NotBilinearError

LAYER = 1


def bridge_of(llama: Any) -> Any:
    """A bridge booted from a model in memory, as a user would."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    tlb.register()
    return build_bridge_from_module(llama, "LlamaForCausalLM", hf_config=llama.config)


class Annealed(torch.nn.Module):
    def __init__(self, beta: float):
        super().__init__()
        self.beta = beta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(self.beta * x) / self.beta if self.beta else x / 2


def with_activation(activation: torch.nn.Module) -> Any:
    """A bridge whose layer 1 has another gate activation than the identity."""
    llama = tiny_llama()
    llama.model.layers[LAYER].mlp.act_fn = activation
    return bridge_of(llama)


def silu_fallback() -> Any:
    """A bilinear bridge that was booted without us and then processed: the upstream trap."""
    from transformer_lens.model_bridge.generalized_components.gated_mlp import GatedMLPBridge

    bridge = bridge_of(tiny_llama(mlp_bias=False))
    for block in bridge.blocks:
        block.mlp.__class__ = GatedMLPBridge
    bridge.enable_compatibility_mode()
    return bridge


def scaled_output() -> Any:
    model = with_activation(torch.nn.Identity())
    mlp = model.blocks[LAYER].mlp
    mlp.register_forward_hook(lambda module, args, out: 1.001 * out)
    return model


def dropout() -> Any:
    model = with_activation(torch.nn.Identity())
    model.blocks[LAYER].mlp.out.register_forward_hook(lambda m, a, out: F.dropout(out, 0.1))
    return model


def clamped() -> Any:
    model = with_activation(torch.nn.Identity())
    model.blocks[LAYER].mlp.gate.register_forward_hook(lambda m, a, out: out.clamp(-6, 6))
    return model


def nan_weight() -> Any:
    model = with_activation(torch.nn.Identity())
    with torch.no_grad():
        model.blocks[LAYER].mlp.W_in[0, 0] = float("nan")
    return model


def hooked_output() -> Any:
    model = with_activation(torch.nn.Identity())
    model.add_hook(f"blocks.{LAYER}.mlp.hook_out", lambda value, hook: 0.99 * value)
    return model


def wrong_gain() -> Any:
    """The norm's output does not follow from hook_normalized and the gain that we see."""
    model = with_activation(torch.nn.Identity())
    model.blocks[LAYER].ln2.register_forward_hook(lambda m, a, out: 1.01 * out)
    return model


def transposed_square() -> Any:
    """A projection that multiplies with the transpose of the weight that it shows."""
    model = bridge_of(tiny_llama(intermediate_size=16))
    mlp = model.blocks[LAYER].mlp
    mlp.gate.register_forward_hook(lambda m, a, out: a[0] @ mlp.W_gate.T + mlp.b_gate)
    return model


FAULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "SiLU gate": (lambda: with_activation(torch.nn.SiLU()), "the gate has a SiLU activation"),
    "GELU gate": (lambda: with_activation(torch.nn.GELU()), "the gate has a GELU activation"),
    "ReLU gate": (lambda: with_activation(torch.nn.ReLU()), "the gate has a ReLU activation"),
    "SiLU fallback": (silu_fallback, "adopt_"),
    "beta 0.1": (lambda: with_activation(Annealed(0.1)), "SiLU with beta about 0.1"),
    "beta 0.003": (lambda: with_activation(Annealed(0.003)), "not quite annealed|not folded"),
    "factor not folded": (lambda: with_activation(Annealed(0)), "was not folded"),
    "output scaled": (scaled_output, "quadratic, but not in these weights"),
    "dropout": (dropout, "not a polynomial of degree two"),
    "clamped gate": (clamped, "not a polynomial of degree two"),
    "NaN": (nan_weight, "W_in .* holds NaN"),
    "hook left on": (hooked_output, "reset_hooks|not in these weights"),
    "wrong gain": (wrong_gain, "its input is not what its norm"),
    "transposed": (transposed_square, "swapped, transposed, scaled or stale"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_caught(fault):
    build, cause = FAULTS[fault]
    model = build()
    with pytest.raises(NotBilinearError, match=cause) as caught:
        tlb.self_check(model)
    layer = 0 if fault == "SiLU fallback" else LAYER
    assert f"layer {layer}" in str(caught.value)


def test_the_same_model_without_a_fault_passes():
    check = tlb.self_check(with_activation(torch.nn.Identity()))
    assert check.largest_error < 1e-5
    assert "2 MLPs recomputed from their weights" in str(check)


def test_adopt_repairs_the_fallback():
    reference = tiny_llama(mlp_bias=False)
    bridge = silu_fallback()
    assert tlb.adopt_(bridge) == 2
    error = tlb.self_check(bridge, reference=logits_of(reference)).reference_error
    assert error is not None and error < 1e-4


def test_lost_biases_of_a_stock_component():
    """TransformerLens' GatedMLP has no b_gate and adds b_in behind the product."""
    if "hooked_transformer" not in hosts():
        pytest.skip("TransformerLens 4.x has no HookedTransformer")
    from transformer_lens.components.mlps.gated_mlp import GatedMLP

    model = native("RMS", "hooked_transformer")
    stock = GatedMLP(model.cfg)
    ours = model.blocks[LAYER].mlp
    stock.load_state_dict({k: v for k, v in ours.state_dict().items() if k != "b_gate"})
    model.blocks[LAYER].mlp = stock
    model.setup()
    with pytest.raises(NotBilinearError, match="layer 1 .* b_in is added after the product"):
        tlb.self_check(model)


@pytest.mark.parametrize("host", hosts())
def test_conversion_faults_need_a_reference(host, tmp_path):
    """Matrices of two layers swapped: every MLP agrees with its weights, the model is wrong."""
    reference = tiny_llama()
    model = tlb.load(save(reference, tmp_path / "llama"), host=host)
    with torch.no_grad():
        first, second = (model.blocks[i].mlp.W_out for i in (0, 1))
        kept = first.clone()
        first.copy_(second)
        second.copy_(kept)
    tlb.self_check(model)
    with pytest.raises(NotBilinearError, match="differ from the reference"):
        tlb.self_check(model, reference=logits_of(tiny_llama()))


def scaled_heads(model: Any) -> None:
    """W_O times 1.05, as a checkpoint's attention scale that was folded wrongly."""
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_O.mul_(1.05)


def wrong_denominator(model: Any) -> None:
    """Scores divided by sqrt(d_model) instead of sqrt(d_head)."""
    for block in model.blocks:
        attention = block.attn
        if hasattr(attention, "attn_scale"):  # HookedTransformer
            attention.attn_scale *= 2.0
        else:
            attention.original_component.scaling *= 0.5


@pytest.mark.parametrize("fault", [scaled_heads, wrong_denominator])
@pytest.mark.parametrize("host", hosts())
def test_a_wrong_attention_scale_shows_beside_a_reference(host, fault, tmp_path):
    """Every MLP agrees with its weights: only the reference tells."""
    model = tlb.load(save(tiny_llama(), tmp_path / "llama"), host=host)
    reference = logits_of(tiny_llama())
    tlb.self_check(model, reference=reference)
    fault(model)
    tlb.self_check(model)
    with pytest.raises(NotBilinearError, match="differ from the reference .*attention scale"):
        tlb.self_check(model, reference=reference)


def test_tokens_that_look_like_padding_do_not_stop_the_check(tmp_path):
    """The random tokens may begin with the pad token."""
    folder = word_tokenizer(save(tiny_llama(), tmp_path / "llama"))
    for seed in range(40):
        first = torch.randint(40, (2, 24), generator=torch.Generator().manual_seed(seed))[:, 0]
        if 2 in first.tolist():
            break
    model = tlb.load(folder, check=False)
    assert model.tokenizer.pad_token_id == 2
    tlb.self_check(model, seed=seed)


@pytest.mark.parametrize("host", hosts())
def test_it_takes_less_than_a_second_on_a_small_model(host):
    model = tlb.load("stories-5l", host=host, check=False)
    assert min(tlb.self_check(model).seconds for _ in range(3)) < 1


def test_the_check_leaves_the_random_generator_and_the_hooks_alone():
    model = with_activation(torch.nn.Identity())
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    tlb.self_check(model)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
