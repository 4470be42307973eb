"""Native bilinear models: biases inside the product, seeds, training, state dicts, processing."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from models import NATIVE
from test_hosts import UNIMPORTED

import tl_bilinear as tlb
from tl_bilinear.hosts.self_check import relative_error

NORMS = ("LN", "RMS", None)  # LNPre and RMSPre: test_folding.py
POSITIONS = {
    "learned": {"positional_embedding_type": "standard"},
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 4},
}


def boot(*, mlp_bias: bool = True, perturbed: bool = True, **options: Any) -> Any:
    from transformer_lens.config import TransformerBridgeConfig

    from tl_bilinear.hosts.native import boot_bilinear

    bridge = boot_bilinear(TransformerBridgeConfig(**{**NATIVE, **options}), mlp_bias=mlp_bias)
    if perturbed:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in bridge.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return bridge


def tokens() -> torch.Tensor:
    return torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("d_mlp", [24, 16])
def test_biases_are_inside_the_product_raw_and_processed(norm, positions, d_mlp):
    bridge = boot(normalization_type=norm, d_mlp=d_mlp, **POSITIONS[positions])
    tlb.self_check(bridge)
    weights = tlb.get_host(bridge).mlp_map(0)
    assert weights.left_bias.any() and weights.right_bias.any() and weights.out_bias.any()
    with torch.no_grad():
        before = bridge(tokens()).log_softmax(-1)
        bridge.enable_compatibility_mode()
        after = bridge(tokens()).log_softmax(-1)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
    tlb.self_check(bridge)
    assert tlb.attribute_components(bridge, tokens(), 5).discrepancy.abs().max() < 1e-5


def test_the_mlp_is_what_its_formula_says():
    mlp = boot().blocks[0].mlp
    x = torch.randn(2, 3, 16)
    with torch.no_grad():
        expected = ((x @ mlp.W_gate + mlp.b_gate) * (x @ mlp.W_in + mlp.b_in)) @ mlp.W_out
        assert relative_error(mlp(x), expected + mlp.b_out) < 1e-6


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = boot(perturbed=False).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = boot(perturbed=False).state_dict(), boot(perturbed=False, seed=1).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    key = "blocks.0.mlp.gate.weight"
    assert not torch.equal(first[key], other[key])


@pytest.mark.parametrize("mlp_bias", [False, True])
def test_state_dicts_come_back_exactly(mlp_bias, tmp_path):
    from safetensors.torch import load_file, save_file

    model, other = boot(mlp_bias=mlp_bias), boot(mlp_bias=mlp_bias, perturbed=False, seed=9)
    state = model.state_dict()
    assert ("blocks.0.mlp.gate.bias" in state) == mlp_bias
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "m.safetensors")
    other.load_state_dict(load_file(tmp_path / "m.safetensors"))
    with torch.no_grad():
        assert torch.equal(model(tokens()), other(tokens()))
    if mlp_bias:
        with pytest.raises(RuntimeError, match="bias"):
            boot(mlp_bias=False).load_state_dict(state)


@pytest.mark.parametrize("norm", ["LN", "RMS"])
def test_it_trains_biases_and_all(norm):
    bridge = boot(normalization_type=norm, perturbed=False)
    optimiser = torch.optim.AdamW(bridge.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = bridge(tokens(), return_type="loss")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    # out.bias sees a gradient at once; the inner ones as soon as the other factor is not zero.
    assert all(getattr(bridge.blocks[0].mlp, f"b_{name}").any() for name in ("gate", "in"))
    tlb.self_check(bridge)


def test_configurations_that_are_not_bilinear_are_refused():
    with pytest.raises(ValueError, match="gated_mlp=False"):
        boot(gated_mlp=False)
    with pytest.raises(ValueError, match="act_fn='silu'"):
        boot(act_fn="silu")


def test_upstream_boot_refuses_a_bilinear_mlp_without_a_gate():
    """It would be a linear MLP."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    tlb.register()
    config = TransformerBridgeConfig(**{**NATIVE, "gated_mlp": False})
    with pytest.raises(ValueError, match="without a gate the MLP would be linear"):
        TransformerBridge.boot_native(config)


def test_an_environment_variable_turns_the_entry_point_off():
    """Then TransformerLens computes SwiGLU for a bilinear model, as it does without us."""
    result = subprocess.run(
        [sys.executable, "-c", UNIMPORTED],
        env={**os.environ, "TL_BILINEAR_DISABLE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(result.stdout.split()[-1]) > 0.1
