"""Gated models: what is refused or not opened, and that the check of frozen gates can fail."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import bridge_of
from models import HostName, hosts, logits_of, native, save, tiny_llama

import tl_bilinear as tlb
from tl_bilinear import NotBilinearError
from tl_bilinear.hosts.folding import FoldingError

PROMPT = "Lily saw a boy named Tim. Tim was sad because he lost"


@pytest.mark.parametrize("host", hosts())
def test_a_gated_model_that_was_not_opened_is_refused(host):
    with pytest.raises(NotBilinearError, match="or with frozen_gates=True to read it on a prompt"):
        tlb.load("stories-5l-swiglu", host=host)
    model = tlb.load("stories-5l-swiglu", host=host, check=False)
    view = tlb.get_host(model)
    assert not view.frozen_gates
    mode = tlb.attribute_modes(tlb.load("stories-5l"), PROMPT, " his").mode(0, 0)
    calls: dict[str, Callable[[], Any]] = {
        "self_check": lambda: tlb.self_check(model),
        "modes": lambda: tlb.attribute_modes(model, PROMPT, " his"),
        "map": lambda: view.mlp_map(0),
        "tensor": lambda: view.mlp_tensor(0),
        "frozen map": lambda: view.frozen_mlp_map(0, torch.zeros(1, 64)),
    }
    for call in calls.values():
        with pytest.raises(NotBilinearError, match=r"SiLU.*frozen_gates=True"):
            call()
    with pytest.raises(ValueError, match="cannot be ablated: layer 0 has a SiLU gate"):
        with tlb.ablate(model, mode):
            pass
    # Components read the MLPs' outputs alone: nothing of a gate enters, and nothing is refused.
    assert tlb.attribute_components(model, PROMPT, " his").discrepancy.abs().max() < 1e-4


def test_modes_of_frozen_gates_are_not_ablated_and_no_report_is_made_of_them():
    from tl_bilinear.ablation import measure_ablation
    from tl_bilinear.report import measure_report

    model = tlb.load("stories-5l-swiglu", frozen_gates=True)
    mode = tlb.attribute_modes(model, PROMPT, " his").mode(4, 0)
    with pytest.raises(ValueError, match="every token modes of its own"):
        with tlb.ablate(model, mode):
            pass
    with pytest.raises(ValueError, match="every token modes of its own"):
        measure_ablation(model, PROMPT, " his", mode, [PROMPT])
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
    with pytest.raises(NotBilinearError, match="a report shows modes of the weights alone"):
        measure_report(model, [PROMPT], texts_source="none")


@pytest.mark.parametrize("host", hosts())
def test_an_unknown_gate_is_named(host: HostName, tmp_path):
    folder = save(tiny_llama("mish", mlp_bias=False), tmp_path / "m")
    with pytest.raises(ValueError, match="mish|Mish"):
        tlb.load(folder, host=host, frozen_gates=True)
    bridge = bridge_of(tiny_llama("mish", mlp_bias=False), "Llama")
    with pytest.raises(
        ValueError, match=r"layer 0: the gate's activation \(Mish.*none whose slope"
    ):
        tlb.freeze_gates_(bridge)
    assert not tlb.get_host(bridge).frozen_gates


def test_a_gate_that_a_bridge_forgets_when_weights_are_processed():
    llama = tiny_llama("tanh")
    bridge = tlb.freeze_gates_(bridge_of(copy.deepcopy(llama), "Llama"))
    assert tlb.self_check(bridge, reference=logits_of(llama)).frozen_gates == ("tanh",)
    with pytest.raises(FoldingError, match=r"computes SiLU for every gate .* \(tanh\)"):
        bridge.enable_compatibility_mode()
    with pytest.raises(NotBilinearError, match="computes a SiLU gate, but was built with tanh"):
        tlb.self_check(bridge)
    with pytest.raises(NotBilinearError, match="modes would not add up"):
        tlb.attribute_modes(bridge, torch.arange(14).reshape(2, 7), 5)


def scaled(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
    return 1.001 * out


FAULTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "output scaled": (
        lambda b: b.mlp.register_forward_hook(scaled),
        "a SiLU gate, but not of these",
    ),
    "clamped": (
        lambda b: b.mlp.gate.register_forward_hook(lambda m, a, out: out.clamp(-2, 2)),
        "a SiLU gate, but not of these",
    ),
    "wrong gain": (lambda b: b.ln2.register_forward_hook(scaled), "its input is not what its norm"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_of_a_frozen_model_can_fail(fault):
    bridge = tlb.freeze_gates_(bridge_of(tiny_llama("silu"), "Llama"))
    tlb.self_check(bridge)
    damage, cause = FAULTS[fault]
    damage(bridge.blocks[1])
    with pytest.raises(NotBilinearError, match=f"layer 1 .* their gate frozen.*{cause}"):
        tlb.self_check(bridge)


def test_a_reference_that_differs_is_noticed():
    bridge = tlb.freeze_gates_(bridge_of(tiny_llama("silu"), "Llama"))
    with pytest.raises(NotBilinearError, match="differ from the reference"):
        tlb.self_check(bridge, reference=logits_of(tiny_llama("gelu")))


def test_biases_behind_the_product_are_named():
    if "hooked_transformer" not in hosts():
        pytest.skip("TransformerLens 4.x has no HookedTransformer")
    model = tlb.freeze_gates_(native("RMS", "hooked_transformer", act_fn="silu"))
    with pytest.raises(NotBilinearError, match="b_in is added after the product"):
        tlb.self_check(model)


def test_slopes_of_other_tokens_are_refused(unchecked):
    tensor = tlb.BilinearTensor(torch.ones(3, 4), torch.ones(3, 4), torch.ones(2, 4))
    weights = tlb.QuadraticMap(tensor, torch.ones(4), torch.ones(4), torch.ones(2))
    from tl_bilinear.frozen_map import FrozenMap

    frozen = FrozenMap(weights, torch.ones(2, 5, 4))
    for use in (frozen, frozen.quadratic, frozen.linear):
        with pytest.raises(ValueError, match=r"inputs of shape \(2, 5\), got \(5,\)"):
            use(torch.ones(5, 3))
    with pytest.raises(ValueError, match="one index per axis"):
        frozen.at(0)
    with pytest.raises(ValueError, match="must have 4 entries on its last axis"):
        FrozenMap(weights, torch.ones(2, 5, 3))
