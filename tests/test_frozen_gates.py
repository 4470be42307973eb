"""Gated models on a prompt: with the gate's slope frozen every token has a tensor of its own."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import BIASES, bridge_of, family, process_
from models import hosts, logits_of, native, save, tiny_llama
from models import process_ as fold_

import tl_bilinear as tlb
from tl_bilinear import NotBilinearError
from tl_bilinear.hosts.gates import GATES, known_gate
from tl_bilinear.hosts.self_check import relative_error

ACTIVATIONS: dict[str, Callable] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda g: F.gelu(g, approximate="tanh"),
    "relu": F.relu,
}
LIMITS = {"silu": 0.5, "gelu": 0.5, "gelu_pytorch_tanh": 0.5, "relu": 0.0}
NAMES = {"silu": "SiLU", "gelu": "GELU", "gelu_pytorch_tanh": "GELU (tanh form)", "relu": "ReLU"}
EXACT = {"hooked_transformer": 1e-9, "transformer_bridge": 1e-6}
PROMPT = "Lily saw a boy named Tim. Tim was sad because he lost"


def tokens_of(batch: int = 2, pos: int = 7) -> torch.Tensor:
    return torch.randint(0, 40, (batch, pos), generator=torch.Generator().manual_seed(7))


@pytest.fixture(
    scope="module",
    params=[(h, a, b) for h in hosts() for a in ACTIVATIONS for b in (False, True)],
    ids=str,
)
def case(request, tmp_path_factory) -> Any:
    """(host name, activation, model): a gated Llama in float64, its gates frozen."""
    host, activation, bias = request.param
    folder = save(tiny_llama(activation, mlp_bias=bias), tmp_path_factory.mktemp("gated") / "m")
    return (
        host,
        activation,
        tlb.load(folder, host=host, dtype=torch.float64, frozen_gates=True),
    )


def dense_twin(
    model: Any, tokens: torch.Tensor, w: torch.Tensor, activation: Callable
) -> tuple[torch.Tensor, torch.Tensor]:
    """Q_t(u) and each MLP's direct effect, by loops over tokens and hidden units."""
    host = tlb.get_host(model)
    logits, cache = model.run_with_cache(tokens)
    u, rho = host.fold_readout(w), cache[host.final_scale_site()][:, -1, 0]
    matrices, shares = [], []
    for layer in range(host.n_layers):
        x = cache[host.mlp_input_site(layer)][:, -1].double()
        weights = host.folded_mlp_weights(layer).to(torch.float64)
        left, right, out = weights.tensor.left, weights.tensor.right, weights.tensor.out
        rows = []
        for row in x:
            gate = left.T @ row + weights.left_bias
            slope = activation(gate) / gate
            rows.append(
                sum(
                    (u @ out[:, r]) * slope[r] * torch.outer(left[:, r], right[:, r])
                    for r in range(len(gate))
                )
            )
        matrices.append(torch.stack([(q + q.T) / 2 for q in rows]))
        shares.append(cache[host.mlp_out_site(layer)][:, -1].double() @ u / rho)
    return torch.stack(matrices).detach(), torch.stack(shares).detach()


def test_the_model_computes_what_transformers_computes(case):
    host, activation, model = case
    reference = tiny_llama(activation, mlp_bias=_has_biases(model)).double()
    check = tlb.self_check(model, reference=logits_of(reference))
    assert check.frozen_gates == (NAMES[activation],) and check.degree_errors == ()
    assert max(check.weight_errors) < 1e-9
    assert check.largest_error < EXACT[host]
    assert f"and {NAMES[activation]} slopes" in str(check)


def _has_biases(model: Any) -> bool:
    weights = tlb.get_host(model).mlp_weights(0)
    return bool(weights.left_bias.any() and weights.right_bias.any())


def test_the_map_of_every_token_is_the_mlp_there(case):
    host, activation, model = case
    view, tokens = tlb.get_host(model), tokens_of()
    for layer in range(2):
        sites = view.mlp_input_site(layer), view.mlp_out_site(layer)
        _, cache = view.read(tokens, sites)
        x, out = (cache[site] for site in sites)
        frozen = view.frozen_mlp_map(layer, x)
        assert frozen.slope.shape == (2, 7, 24)
        assert relative_error(frozen(x), out) < EXACT[host]
        parts = frozen.quadratic(x) + frozen.linear(x) + frozen.constant()
        assert relative_error(parts, frozen(x)) < 1e-9
        for row, position in ((0, 0), (1, 4)):
            one = frozen.at(row, position)
            assert relative_error(one(x[row, position]), frozen(x)[row, position]) < 1e-9
            dense = torch.einsum(
                "oij,i,j->o", one.tensor.to_dense(), x[row, position], x[row, position]
            )
            assert relative_error(frozen.quadratic(x)[row, position], dense) < 1e-9
        gate = x @ frozen.weights.tensor.left + frozen.weights.left_bias
        torch.testing.assert_close(
            gate * frozen.slope, ACTIVATIONS[activation](gate), rtol=1e-9, atol=1e-12
        )


def test_attribution_equals_the_dense_twin_and_closes(case):
    host, activation, model = case
    tokens, exact = tokens_of(), EXACT[host]
    full = tlb.attribute_modes(model, tokens, (7, 9), k=None)
    w = (model.W_U[:, 7] - model.W_U[:, 9]).detach()
    matrices, shares = dense_twin(model, tokens, w, ACTIVATIONS[activation])
    vectors, values = full.eigenvectors[:, :, 0], full.eigenvalues[:, :, 0]
    assert vectors.shape == (2, 2, 16, 16)
    rebuilt = torch.einsum("lbk,lbki,lbkj->lbij", values, vectors, vectors)
    torch.testing.assert_close(rebuilt, matrices, rtol=1e-6, atol=1e-9)
    scale = float(shares.abs().max())
    torch.testing.assert_close(full.shares[..., 0], shares, rtol=exact, atol=exact * scale)
    assert full.remainder.abs().max() < 1e-9 * scale
    with torch.no_grad():
        logits = model(tokens)[:, -1].double()
    torch.testing.assert_close(
        full.target[:, 0], logits[:, 7] - logits[:, 9], rtol=exact, atol=exact
    )
    total = full.shares.sum(0) + full.rest
    torch.testing.assert_close(total, full.target, rtol=1e-12, atol=1e-12 * scale)
    torch.testing.assert_close(
        full.shares, tlb.attribute_components(model, tokens, (7, 9)).mlps, rtol=exact, atol=exact
    )
    assert full.provenance.frozen[-1] == f"gates' slopes ({NAMES[activation]})"
    kept = tlb.attribute_modes(model, tokens, (7, 9), k=3, gauge="traceless", layers=[1])
    torch.testing.assert_close(kept.shares[0], full.shares[1], rtol=1e-9, atol=1e-9 * scale)


def test_all_positions_equal_the_last_position_of_every_beginning(case):
    _, _, model = case
    tokens = tokens_of()
    everywhere = tlb.attribute_modes(model, tokens, 5, positions="all", k=4)
    assert everywhere.eigenvalues.shape == (2, 2, 7, 4)
    for position in (0, 4):
        last = tlb.attribute_modes(model, tokens[:, : position + 1], 5, k=4)
        torch.testing.assert_close(
            everywhere.contributions[:, :, position],
            last.contributions[:, :, 0],
            rtol=1e-5,
            atol=1e-8,
        )
    _, cache = model.run_with_cache(tokens)
    cached = tlb.attribute_modes(model, cache, 5, positions="all", k=4)
    torch.testing.assert_close(cached.contributions, everywhere.contributions)


def test_modes_say_that_their_gates_were_frozen_and_belong_to_their_prompt(case):
    _, _, model = case
    modes = tlb.attribute_modes(model, tokens_of(), 5)
    for batch in (0, 1):
        mode, effect = modes.top(1, batch=batch)[0]
        assert "gates frozen" in mode.label
        x = modes.activations[mode.layer, batch, 0]
        values = modes.eigenvalues[mode.layer, batch, 0] * x**2
        assert effect == pytest.approx(
            float(values[values.abs().argmax()] / modes.denominators[mode.layer, batch, 0])
        )
    assert not torch.equal(
        modes.mode(0, 0, batch=0).eigenvector, modes.mode(0, 0, batch=1).eigenvector
    )


@pytest.mark.parametrize(
    "mode, size", [("raw", 24), ("compat", 24), ("folded", 24), ("folded", 16)]
)
@pytest.mark.parametrize(
    "name, activation",
    [("Gemma 2", "gelu_pytorch_tanh"), ("Phi3", "silu"), ("Qwen2", "silu"), ("StableLM", "silu")],
)
def test_families_on_the_bridge(name, activation, size, mode):
    """Post-norms, softcaps, fused gate and input, LayerNorm; TransformerLens' own folding.

    Folded in float32: in float64 3.9 itself leaves some biases in float32 and cannot run.
    """
    reference = family(name, activation, intermediate_size=size, **BIASES.get(name, {}))
    exact = 1e-5 if mode == "folded" else 1e-6
    if mode != "folded":
        reference = reference.double()
    bridge = bridge_of(copy.deepcopy(reference), name)
    assert tlb.freeze_gates_(bridge) is bridge
    process_(bridge, mode)
    check = tlb.self_check(bridge, reference=logits_of(reference), tolerance=exact)
    assert check.largest_error < exact
    parts = tlb.attribute_components(bridge, tokens_of(), 5)
    modes = tlb.attribute_modes(bridge, tokens_of(), 5, k=None)
    scale = float(parts.mlps.abs().max())
    torch.testing.assert_close(modes.shares, parts.mlps, rtol=exact, atol=exact * scale)
    assert parts.discrepancy.abs().max() < 1e-5
    assert (modes.shares.sum(0) + modes.rest - modes.target).abs().max() < 1e-9


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("size", [24, 16], ids=["d_mlp 24", "d_mlp == d_model"])
def test_folding_a_llama_keeps_its_log_probabilities(host, size, tmp_path):
    """Without the mark a HookedTransformer with d_mlp == d_model is off by several nats."""
    reference = tiny_llama("silu", intermediate_size=size)
    model = tlb.load(save(reference, tmp_path / "m"), host=host, frozen_gates=True)
    fold_(model, host)
    assert tlb.self_check(model, reference=logits_of(reference)).largest_error < 1e-5


@pytest.mark.parametrize("norm", ["RMS", "LN"])
def test_native_gated_bridges(norm):
    bridge = tlb.freeze_gates_(native(norm, "transformer_bridge", act_fn="silu"))
    assert tlb.self_check(bridge).frozen_gates == ("SiLU",)
    modes = tlb.attribute_modes(bridge, tokens_of(), 5)
    mlps = tlb.attribute_components(bridge, tokens_of(), 5).mlps
    torch.testing.assert_close(modes.shares, mlps, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_gate_of_exactly_zero_takes_the_limit(host, activation, tmp_path):
    llama = tiny_llama(activation, mlp_bias=False)
    with torch.no_grad():
        llama.model.layers[0].mlp.gate_proj.weight[:3] = 0
    folder = save(llama, tmp_path / "m")
    model = tlb.load(folder, host=host, dtype=torch.float64, frozen_gates=True)
    view = tlb.get_host(model)
    stream = view.read_streams(tokens_of(), [0])[0]
    slope = view.frozen_mlp_map(0, stream).slope[..., :3]
    assert torch.equal(slope, torch.full_like(slope, LIMITS[activation]))
    modes = tlb.attribute_modes(model, tokens_of(), 5)
    assert torch.isfinite(modes.contributions).all()


def test_known_gates_are_told_by_what_they_compute():
    from transformers.activations import ACT2FN

    expected = {
        "swish": "SiLU",
        "gelu_new": "GELU (tanh form)",
        "gelu_fast": "GELU (tanh form)",
        "gelu_python": "GELU",
        "quick_gelu": "quick GELU",
        "tanh": "tanh",
        "relu2": "ReLU squared",
        **NAMES,
    }
    found = {name: known_gate(ACT2FN[name]) for name in expected}
    assert {name: gate.name if gate else None for name, gate in found.items()} == expected
    for name in ("mish", "relu6", "gelu_10", "sigmoid", "linear", "leaky_relu"):
        assert known_gate(ACT2FN[name]) is None, name
    points = torch.tensor([-1e-300, -1e-9, 0.0, 1e-9, 1e-300], dtype=torch.float64)
    for gate in GATES:
        smooth = 0.0 if gate.name.startswith("ReLU") else 1e-8
        near = gate.slope(points)
        assert torch.isfinite(near).all()
        if smooth:
            torch.testing.assert_close(near, near[2].expand(5), rtol=smooth, atol=0.0)
        assert ACT2FN[gate.activation] is not None


@pytest.mark.parametrize("host", hosts())
def test_a_bilinear_model_has_slopes_of_one_and_the_same_attribution(host, tmp_path):
    folder = save(tiny_llama(), tmp_path / "m")
    plain, frozen = (tlb.load(folder, host=host, frozen_gates=on) for on in (False, True))
    view = tlb.get_host(frozen)
    stream = view.read_streams(tokens_of(), [1])[1]
    frozen_map = view.frozen_mlp_map(1, stream)
    assert torch.equal(frozen_map.slope, torch.ones(2, 7, 24))
    assert relative_error(frozen_map(stream), view.mlp_map(1)(stream)) < 1e-6
    first, second = (tlb.attribute_modes(model, tokens_of(), 5) for model in (plain, frozen))
    assert torch.equal(first.contributions, second.contributions)
    assert torch.equal(first.eigenvectors, second.eigenvectors)
    assert first.provenance == second.provenance
    with tlb.ablate(frozen, second.mode(1, 0)):
        frozen(tokens_of())


def test_some_layers_gated_and_some_bilinear():
    llama = tiny_llama()
    llama.model.layers[1].mlp.act_fn = torch.nn.SiLU()
    bridge = tlb.freeze_gates_(bridge_of(llama, "Llama"))
    check = tlb.self_check(bridge)
    assert check.frozen_gates == ("SiLU",) and len(check.degree_errors) == 1
    modes = tlb.attribute_modes(bridge, tokens_of(), 5)
    assert modes.eigenvalues.shape == (2, 2, 1, 16)
    assert torch.equal(modes.eigenvalues[0, 0], modes.eigenvalues[0, 1])
    mlps = tlb.attribute_components(bridge, tokens_of(), 5).mlps
    torch.testing.assert_close(modes.shares, mlps, rtol=1e-5, atol=1e-5)
    assert tlb.attribute_modes(bridge, tokens_of(), 5, layers=[0]).provenance.frozen == (
        "final norm's denominator",
    )


@pytest.mark.parametrize("host", hosts())
def test_the_bundled_swiglu_model(host):
    model = tlb.load("stories-5l-swiglu", host=host, frozen_gates=True)
    for target in (" his", (" his", " her"), (" ball", " bike")):
        modes = tlb.attribute_modes(model, PROMPT, target)
        parts = tlb.attribute_components(model, PROMPT, target)
        scale = float(parts.mlps.abs().max())
        torch.testing.assert_close(modes.shares, parts.mlps, rtol=1e-5, atol=1e-5 * scale)
        torch.testing.assert_close(parts.total, modes.target, rtol=1e-5, atol=1e-5)
        assert "SiLU" in str(modes.provenance)


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
def test_a_saved_model_keeps_its_activation(host, activation, tmp_path):
    reference = tiny_llama(activation)
    model = tlb.load(save(reference, tmp_path / "m"), host=host, frozen_gates=True)
    folder = tlb.save_pretrained(model, tmp_path / "saved")
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(folder)
    assert again.config.hidden_act == activation and again.config.mlp_bias
    with torch.no_grad():
        torch.testing.assert_close(
            again(tokens_of()).logits, model(tokens_of()), rtol=1e-4, atol=1e-4
        )
    with pytest.raises(NotBilinearError):
        tlb.load(folder, host=host)  # opting in is not saved
    assert torch.equal(
        tlb.load(folder, host=host, frozen_gates=True)(tokens_of()), model(tokens_of())
    )


def test_the_mark_is_kept_by_a_copy_and_seen_by_every_host_object():
    model = tlb.load("stories-5l-swiglu", frozen_gates=True)
    for found in (model, copy.deepcopy(model), tlb.get_host(model)):
        assert tlb.get_host(found).frozen_gates
    gate = tlb.get_host(model).gate(0)
    assert gate is not None and gate.name == "SiLU"
    assert float(gate.slope(torch.tensor(2.0))) == pytest.approx(1 / (1 + math.exp(-2)))
