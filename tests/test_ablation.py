"""Ablation by hook equals subtracting the tensor; controls are matched; hooks come off."""

from dataclasses import replace

import pytest
import torch
from models import hosts, native

import tl_bilinear as tlb
from tl_bilinear.ablation import matched_random_modes, measure_ablation, rms_contribution
from tl_bilinear.hosts.corpus import mlp_streams

PROMPT = "Lily saw a boy named Tim. Tim was sad because he lost"
TEXTS = ("Tom had a dog. The dog was big.", "Lily lost her ball. She was sad. Her mom came.")


@pytest.fixture(scope="module", params=hosts())
def story(request):
    return tlb.load("stories-5l", host=request.param)


def modes_of(model, layer: int, directions: torch.Tensor, count: int) -> list[tlb.Mode]:
    tensor = tlb.get_host(model).mlp_tensor(layer).to(torch.float64)
    eigen = tlb.eigendecompose(tensor, directions, count)
    return [
        tlb.Mode(layer, u, float(values[i]), vectors[i])
        for u, values, vectors in zip(
            directions, eigen.eigenvalues, eigen.eigenvectors, strict=True
        )
        for i in range(count)
    ]


def dense_twin(model, tokens, modes, scale: float) -> torch.Tensor:
    """Logits after subtracting each layer's modes as a dense tensor, least squares in U."""
    host = tlb.get_host(model)
    layers = sorted({mode.layer for mode in modes})
    streams: dict[int, torch.Tensor] = {}
    hooks = []
    for layer in layers:
        group = [mode for mode in modes if mode.layer == layer]
        u = torch.stack([mode.direction for mode in group]).unique(dim=0)
        dense = torch.zeros(len(u), host.d_model, host.d_model, dtype=torch.float64)
        for mode in group:
            row = int((u == mode.direction).all(1).nonzero())
            dense[row] += mode.eigenvalue * torch.outer(mode.eigenvector, mode.eigenvector)
        # The smallest change of y for which every u . y falls by its modes' value.
        solve = torch.linalg.lstsq(u, torch.eye(len(u), dtype=torch.float64)).solution

        def keep(value, hook, layer=layer):
            streams[layer] = value

        def subtract(value, hook, layer=layer, dense=dense, solve=solve):
            x = streams[layer].double()
            lost = torch.einsum("cij,bpi,bpj->bpc", dense, x, x)
            return value - (1 - scale) * (lost @ solve.T).to(value)

        hooks += [(host.mlp_input_site(layer), keep), (host.mlp_out_site(layer), subtract)]
    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=hooks)


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("norm", ["LN", "RMS", None])
@pytest.mark.parametrize("scale", [0.0, -1.0, 0.5])
@pytest.mark.parametrize("cosine", [None, 0.0, 0.99])
def test_the_hook_subtracts_the_tensor(host, norm, scale, cosine):
    model = native(norm, host)
    u = torch.randn(2, 16, dtype=torch.float64)
    if cosine is None:
        u = u[:1]
    else:
        u[1] -= u[0] * (u[0] @ u[1]) / (u[0] @ u[0])
        u[1] = cosine * u[0] / u[0].norm() + (1 - cosine**2) ** 0.5 * u[1] / u[1].norm()
    modes = modes_of(model, 0, u, 3) + modes_of(model, 1, u[:1], 2)
    tokens = torch.randint(0, 40, (2, 7))
    with torch.no_grad(), tlb.ablate(model, modes, scale=scale):
        found = model(tokens)
    expected = dense_twin(model, tokens, modes, scale)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("host", hosts())
def test_removing_every_mode_of_every_direction_removes_the_quadratic_part(host):
    model = native("RMS", host)
    view = tlb.get_host(model)
    modes = modes_of(model, 1, torch.eye(16, dtype=torch.float64), 16)
    tokens = torch.randint(0, 40, (1, 6))
    site, x_site = view.mlp_out_site(1), view.mlp_input_site(1)
    seen = {}
    with tlb.ablate(model, modes):
        _, cache = view.read(tokens, [x_site])
        with view.hooks([(site, lambda value, hook: seen.update(out=value))]):
            view.read(tokens, ())
    weights = view.mlp_map(1)
    rest = weights.linear(cache[x_site]) + weights.constant()
    torch.testing.assert_close(seen["out"], rest, rtol=1e-6, atol=1e-6)


def test_scale_one_changes_nothing_and_hooks_come_off(story):
    mode = tlb.attribute_modes(story, PROMPT, (" his", " her")).mode(4, 0)
    tokens = story.to_tokens(PROMPT)
    with torch.no_grad():
        before = story(tokens)
        with tlb.ablate(story, mode, scale=1.0):
            torch.testing.assert_close(story(tokens), before)
        with tlb.ablate(story, mode):
            assert not torch.allclose(story(tokens), before, atol=1e-3)
        assert torch.equal(story(tokens), before)
        with pytest.raises(KeyError, match="mine"), tlb.ablate(story, mode):
            story(tokens)
            raise KeyError("mine")
        assert torch.equal(story(tokens), before)


def test_nested_ablations_add_up(story):
    found = tlb.attribute_modes(story, PROMPT, (" his", " her"))
    first, second = found.mode(4, 0), found.mode(4, 1)
    tokens = story.to_tokens(PROMPT)
    with torch.no_grad():
        with tlb.ablate(story, [first, second]):
            together = story(tokens)
        with tlb.ablate(story, first), tlb.ablate(story, second):
            nested = story(tokens)
    torch.testing.assert_close(nested, together, rtol=0, atol=1e-4)


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_natively_built_models_nest_and_forget_after_errors(host, dtype):
    model = native("RMS", host, dtype)
    u = torch.randn(2, 16, dtype=torch.float64)
    modes = modes_of(model, 0, u[:1], 2) + modes_of(model, 1, u[1:], 2)
    tokens = torch.randint(0, 40, (2, 7))
    limit = 1e-9 if dtype == torch.float64 else 5e-2
    with torch.no_grad():
        before = model(tokens)
        with tlb.ablate(model, modes, scale=-1.0):
            together = model(tokens)
        with tlb.ablate(model, modes[:1], scale=-1.0), tlb.ablate(model, modes[1:], scale=-1.0):
            nested = model(tokens)
        assert (nested - together).abs().max() <= limit * together.abs().max()
        assert (together - before).abs().max() > 5 * limit * before.abs().max()

        def fail(value, hook):
            raise KeyError("inside")

        with pytest.raises(KeyError, match="inside"), tlb.ablate(model, modes, scale=-1.0):
            with tlb.get_host(model).hooks([("blocks.1.hook_resid_pre", fail)]):
                model(tokens)
        with tlb.ablate(model, modes, scale=-1.0):
            assert torch.equal(model(tokens), together)  # nothing is left of the failed pass
        assert torch.equal(model(tokens), before)


def test_an_ablation_that_never_ran_is_an_error(story):
    mode = tlb.attribute_modes(story, PROMPT, " his").mode(0, 0)
    with pytest.raises(RuntimeError, match="layers \\[0\\] never ran"), tlb.ablate(story, mode):
        pass


def test_the_direct_effect_is_the_contribution(story):
    """Last layer, so nothing stands between the mode and the target but the final norm."""
    found = tlb.attribute_modes(story, PROMPT, (" his", " her"))
    mode, value = found.mode(4, 0), float(found.contributions[4, 0, 0, 0])
    effect = measure_ablation(story, PROMPT, (" his", " her"), mode, TEXTS, draws=3)
    assert effect.direct == pytest.approx(-value, rel=1e-5)
    assert effect.before == pytest.approx(float(found.total), abs=1e-4)
    assert effect.change == pytest.approx(effect.direct, rel=0.5, abs=0.3)
    assert effect.probabilities[0][0] == " his"


def test_controls_are_matched_seeded_and_of_the_same_sign(story):
    mode = tlb.attribute_modes(story, PROMPT, (" his", " her")).mode(3, 0)
    streams = mlp_streams(story, 3, TEXTS)
    controls = matched_random_modes(mode, streams, draws=20, seed=4)
    wanted = rms_contribution(mode, streams)
    for control in controls:
        assert rms_contribution(control, streams) == pytest.approx(wanted, rel=1e-9)
        assert float(control.eigenvector.norm()) == pytest.approx(1.0)
        assert control.eigenvalue * mode.eigenvalue > 0
        assert torch.equal(control.direction, mode.direction)
    again = matched_random_modes(mode, streams, draws=20, seed=4)
    assert all(
        torch.equal(a.eigenvector, b.eigenvector) for a, b in zip(controls, again, strict=True)
    )
    effects = [
        measure_ablation(story, PROMPT, (" his", " her"), mode, TEXTS, draws=3, seed=1)
        for _ in range(2)
    ]
    assert effects[0].controls == effects[1].controls


def test_positive_control_a_mode_that_reads_the_prompt_beats_every_random_one():
    """A planted mode, aligned with the stream of one prompt, must do what none at random does."""
    model = native("RMS", hosts()[0], n_layers=1)
    host = tlb.get_host(model)
    tokens = torch.randint(0, 40, (1, 9))
    x = host.read_streams(tokens, [0])[0][0, -1].double()
    v = x / x.norm()
    u = host.fold_readout((model.W_U[:, 5] - model.W_U[:, 6]).detach().double())
    host_weights = model.blocks[0].mlp
    with torch.no_grad():  # one neuron becomes 3 (v . x)^2 u / |u|^2
        gain = host.mlp_norm(0).gain
        assert gain is not None
        host_weights.W_gate[:, 0] = v / gain
        host_weights.W_in[:, 0] = 3 * v / gain
        host_weights.W_out[0] = u / u.square().sum()
        for bias in (host_weights.b_gate, host_weights.b_in):
            if bias is not None:
                bias[0] = 0
    tlb.self_check(model)
    mode = tlb.Mode(0, u, 3.0, v)
    streams = host.read_streams(torch.randint(0, 40, (20, 9)), [0])[0].double().flatten(0, 1)
    with torch.no_grad():
        before = model(tokens)[0, -1]

        def change(one: tlb.Mode) -> float:
            with tlb.ablate(model, one):
                after = model(tokens)[0, -1]
            return float((after[5] - after[6]) - (before[5] - before[6]))

        planted = change(mode)
        controls = [change(control) for control in matched_random_modes(mode, streams, 20)]
    assert planted < 0
    assert all(abs(control) < abs(planted) for control in controls)


@pytest.mark.parametrize("host", hosts())
def test_generation_with_and_without_cache_equals_a_manual_loop(host):
    model = tlb.load("stories-5l", host=host)
    mode = tlb.attribute_modes(model, PROMPT, (" his", " her")).mode(2, 0)
    tokens = model.to_tokens("Once upon a time, there was a")
    with torch.no_grad(), tlb.ablate(model, mode, scale=-2.0):
        manual = tokens
        for _ in range(8):
            manual = torch.cat([manual, model(manual)[:, -1:].argmax(-1)], dim=1)
        for cache in (True, False):
            found = model.generate(
                tokens,
                max_new_tokens=8,
                do_sample=False,
                use_past_kv_cache=cache,
                stop_at_eos=False,
                verbose=False,
            )
            assert found.tolist() == manual.tolist()


def test_bad_modes_are_refused(story):
    mode = tlb.attribute_modes(story, PROMPT, " his").mode(0, 0)
    cases = {
        "`modes` is empty": [],
        "a mode is of layer 9, but this model has layers 0-4": replace(mode, layer=9),
        "this model has d_model = 64": replace(mode, eigenvector=torch.ones(3)),
        "a direction of length zero": replace(mode, direction=torch.zeros(64)),
    }
    for words, modes in cases.items():
        with pytest.raises(ValueError, match=words), tlb.ablate(story, modes):
            pass
    with pytest.raises(ValueError, match="no token"):
        measure_ablation(story, PROMPT, " his", mode, [])
