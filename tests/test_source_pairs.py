"""Pairs of sources: against the MLP called per pair, the model's own scores, and other sums."""

from typing import Any

import pytest
import torch
from families import FAMILIES, bridge_of, family, hooked_of
from hypothesis import given, settings
from hypothesis import strategies as st
from models import hosts, native, process_
from strategies import maps, normal
from test_paths import ROTARY, biased

import tl_bilinear as tlb
from tl_bilinear.circuits import pair_table
from tl_bilinear.frozen_map import FrozenMap
from tl_bilinear.hosts.reading import take_reading
from tl_bilinear.hosts.sources import source_hooks, source_values, stream_sources

TINY: dict[str, Any] = {"d_model": 12, "n_heads": 2, "d_head": 4, "d_mlp": 9, "d_vocab": 40}


def exactness(host: str, norm: str | None) -> float:
    """Float64; a native bridge's RMS and parameter-free norms, and its rotation, are in float32."""
    return 1e-9 if host == "hooked_transformer" or norm in ("LN", None) else 1e-5


def tiny(norm: str | None, host: str, **options: Any) -> Any:
    return biased(norm, host, **{**TINY, **options})


def on_every_host(name: str) -> list[Any]:
    """A family's tiny float64 model, on the hosts that there are."""
    found = [bridge_of(family(name).double(), name)]
    if "hooked_transformer" in hosts():
        found.append(hooked_of(family(name).double()))
    return found


@settings(max_examples=15)
@given(maps(), st.integers(1, 3), st.data())
def test_the_table_is_the_map_called_per_pair(weights, n, data):
    inputs, u = normal(data.draw, n, weights.d_in), normal(data.draw, weights.d_out)
    table = pair_table(weights, inputs, u)
    scale = 1e-9 * float(table.abs().max() + 1)
    assert_close = torch.testing.assert_close
    assert_close(table, table.mT)
    for i in range(n):
        assert_close(table[i, -1] * 2, weights.linear(inputs[i]) @ u, rtol=1e-9, atol=scale)
        for j in range(n):
            whole = weights.quadratic(inputs[i] + inputs[j])
            apart = weights.quadratic(inputs[i]) + weights.quadratic(inputs[j])
            assert_close(table[i, j] * 2, (whole - apart) @ u, rtol=1e-9, atol=scale)
    assert_close(table[-1, -1], weights.constant() @ u, rtol=1e-9, atol=scale)
    assert_close(table.sum(), weights(inputs.sum(0)) @ u, rtol=1e-9, atol=10 * scale)


@settings(max_examples=15)
@given(maps(), st.integers(1, 4), st.data())
def test_the_table_of_a_frozen_gate(weights, n, data):
    inputs, u = normal(data.draw, n, weights.d_in), normal(data.draw, weights.d_out)
    frozen = FrozenMap(weights, normal(data.draw, 1, weights.tensor.rank)[0])
    table = pair_table(frozen, inputs, u)
    scale = 1e-9 * float(table.abs().max() + 1)
    expected = frozen(inputs.sum(0)) @ u
    torch.testing.assert_close(table.sum(), expected, rtol=1e-9, atol=10 * scale)


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize(
    ("norm", "options"),
    [
        ("LN", {"n_layers": 4}),
        ("RMS", ROTARY | {"n_layers": 3}),
        (None, {"n_layers": 2}),
        ("RMSPre", ROTARY | {"n_layers": 1}),
    ],
)
def test_tables_sum_to_the_mlps_share_at_any_depth(host, norm, options):
    model = tiny(norm, host, **options)
    tokens = torch.randint(0, 40, (2, 7))
    exact = exactness(host, norm)
    targets = ((7, 9), torch.linspace(-1, 1, 12, dtype=torch.float64))
    for target in targets if norm == "RMS" else targets[:1]:
        shares = tlb.attribute_modes(model, tokens, target, k=1).shares
        for layer in range(options["n_layers"]):
            found = tlb.source_pairs(model, tokens, layer, target)
            scale = float(found.table.abs().max() * len(found.sources))
            assert found.discrepancy.abs().max() < exact * scale
            torch.testing.assert_close(
                found.table.sum((-2, -1)), shares[layer], rtol=exact, atol=exact * scale
            )
            n_position = 1 if "positional_embedding_type" not in options else 0
            assert len(found.sources) == 1 + n_position + (layer + 1) * 3 + layer + 1
            torch.testing.assert_close(found.by_source.sum(-1), found.table.sum((-2, -1)))


@pytest.mark.parametrize("host", hosts())
def test_every_pair_is_the_models_own_mlp_called_on_it(host):
    """Brute force: f(x_s + x_t) - f(x_s) - f(x_t) + f(0) through the host's own MLP."""
    model = tiny("LN", host)
    tokens, own = torch.randint(0, 40, (1, 7)), tlb.get_host(model)
    found = tlb.source_pairs(model, tokens, 1, (7, 9))
    _, cache = model.run_with_cache(tokens)
    cached = tlb.source_pairs(model, cache, 1, (7, 9))
    torch.testing.assert_close(cached.table, found.table)
    reading = take_reading(own, tokens, (7, 9), source_hooks(own, 1))
    streams = source_values(own, stream_sources(own, 1), reading.values)[0, 0]
    resid = cache["blocks.1.hook_resid_mid"][0, -1]
    torch.testing.assert_close(streams.sum(0), resid, rtol=1e-9, atol=1e-9)
    ln2 = own.mlp_norm(1)
    gain, bias = ln2.gain, ln2.bias
    assert gain is not None and bias is not None
    u = own.fold_readout(model.W_U[:, 7] - model.W_U[:, 9]) / cache["ln_final.hook_scale"][0, -1]

    def mlp(x: torch.Tensor) -> torch.Tensor:
        x = (x - x.mean()) / cache["blocks.1.ln2.hook_scale"][0, -1]
        return own.run_mlp(1, (gain * x + bias)[None, None])[0, 0] @ u

    nothing = mlp(torch.zeros(12, dtype=torch.float64))
    single = [mlp(x) for x in streams]
    for i, x in enumerate(streams):
        for j, y in enumerate(streams):
            both = mlp(x + y) - single[i] - single[j] + nothing
            expected = both / 2
            torch.testing.assert_close(found.table[0, 0, i, j], expected, rtol=1e-9, atol=1e-11)
        linear = (mlp(x) - mlp(-x)) / 2
        pair = found.pair(found.sources[i], "constant")[0, 0]
        torch.testing.assert_close(pair, linear, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found.table[0, 0, -1, -1], nothing, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_closes(name):
    """Post-norms, softcaps, norms on queries and keys, partial rotation, sliding windows, GQA."""
    tokens = torch.randint(3, 40, (1, 10))
    for model in on_every_host(name):
        hooked = tlb.get_host(model).kind == "HookedTransformer"
        exact = 1e-9 if hooked else 2e-6
        _, cache = model.run_with_cache(tokens)
        found = tlb.source_pairs(model, tokens, 1, 7)
        scale = float(found.table.abs().max())
        assert found.discrepancy.abs().max() < exact * scale
        scores = tlb.score_pairs(model, tokens, 1, 2, query=-1, key=8)
        own = cache["blocks.1.attn.hook_attn_scores"][0, 2, -1, 8]
        assert abs(float(scores.capped - own)) < exact * 5
        assert abs(float(scores.discrepancy)) < exact * 5
        assert (scores.softcap is not None) == (name == "Gemma 2")
    if name in ("Gemma 2", "Gemma 3"):
        with pytest.raises(ValueError, match="its window is shorter"):
            tlb.score_pairs(model, tokens, 0, 2, query=-1, key=0)


@pytest.mark.parametrize("host", hosts())
def test_folded_weights_give_the_same_pairs(host):
    model = tiny("LN", host)
    tokens = torch.randint(0, 40, (1, 7))
    _, cache = model.run_with_cache(tokens)
    process_(model, host)
    scores = tlb.score_pairs(model, tokens, 1, 1, key=2)
    assert abs(float(scores.discrepancy)) < 1e-9
    if host == "hooked_transformer":
        assert float(scores.score) == pytest.approx(
            float(cache["blocks.1.attn.hook_attn_scores"][0, 1, -1, 2]), rel=1e-7
        )
    found = tlb.source_pairs(model, tokens, 1, (7, 9))
    assert found.discrepancy.abs().max() < 1e-9 * found.table.abs().max() * 10


@pytest.mark.parametrize("host", hosts())
def test_frozen_gates_close(host):
    model = native("RMS", host, act_fn="silu", **TINY)
    with torch.no_grad():
        for block in model.blocks:  # HookedTransformer's own gated MLP adds it behind the product
            if host == "hooked_transformer":
                block.mlp.b_in.zero_()
    tokens = torch.randint(0, 40, (2, 7))
    with pytest.raises(tlb.NotBilinearError, match="frozen_gates=True"):
        tlb.source_pairs(model, tokens, 1, 7)
    tlb.freeze_gates_(model)
    exact = exactness(host, "RMS")
    shares = tlb.attribute_modes(model, tokens, 7, positions="all", k=1).shares
    for layer in (0, 1):
        found = tlb.source_pairs(model, tokens, layer, 7, positions="all")
        assert found.table.shape[:2] == (2, 7)
        scale = float(found.table.abs().max())
        assert found.discrepancy.abs().max() < exact * scale
        torch.testing.assert_close(
            found.table.sum((-2, -1)), shares[layer], rtol=exact, atol=exact * scale
        )
    assert any("slopes" in part for part in found.provenance.frozen)


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize(("norm", "options"), [("LN", {}), ("RMS", ROTARY)])
def test_scores_are_the_models_own(host, norm, options):
    model = tiny(norm, host, n_layers=3, **options)
    tokens = torch.randint(0, 40, (7,))
    _, cache = model.run_with_cache(tokens[None])
    exact = exactness(host, norm)
    for layer in (2,):
        for head in range(2):
            rows = [tlb.score_pairs(model, tokens, layer, head, 5, key) for key in range(6)]
            own = cache[f"blocks.{layer}.attn.hook_pattern"][0, head, 5, :6].double()
            found = torch.stack([row.table.sum() for row in rows])
            torch.testing.assert_close(found.softmax(0), own, rtol=0, atol=exact)
            if host == "hooked_transformer":  # a native bridge's hook holds the pattern
                scores = cache[f"blocks.{layer}.attn.hook_attn_scores"][0, head, 5, :6]
                torch.testing.assert_close(found, scores, rtol=exact, atol=exact)
            assert max(abs(float(row.discrepancy)) for row in rows) < exact * 10
            assert rows[0].pattern == pytest.approx(float(own[0]))
    top = rows[3].top(4)
    assert abs(top[0][2]) == float(rows[3].table.abs().max())
    assert float(rows[3].pair(top[0][0], str(top[0][1]))) == top[0][2]
    assert "attention" in str(rows[3])


def test_a_wrong_scale_is_refused(monkeypatch):
    """The guard can fail: scores whose softmax is not the model's pattern."""
    from dataclasses import replace

    from tl_bilinear.hosts import score_map

    model = tiny("LN", hosts()[0])
    rule = score_map.score_rule(tlb.get_host(model), 1)
    monkeypatch.setattr(score_map, "score_rule", lambda *_: replace(rule, scale=rule.scale * 1.01))
    with pytest.raises(ValueError, match="its pattern differs by"):
        tlb.score_pairs(model, torch.randint(0, 40, (7,)), 1, 0)


def test_a_missing_source_is_seen(monkeypatch):
    """The sum can fail: without the first layer's MLP it does not close."""
    from tl_bilinear.circuits import mlp_pairs as module

    model = tiny("LN", hosts()[0])
    every = stream_sources(tlb.get_host(model), 1)
    without = tuple(source for source in every if source.kind != "mlp")
    monkeypatch.setattr(module, "stream_sources", lambda *_: without)
    found = module.source_pairs(model, torch.randint(0, 40, (1, 7)), 1, 7)
    assert found.discrepancy.abs().max() > 1e-3 * found.table.abs().max()


def test_the_bundled_model_closes_for_strings():
    story = tlb.load("stories-5l")
    prompt = "Lily saw a boy named Tim. Tim was sad because he lost"
    found = tlb.source_pairs(story, [prompt, "Tim had a"], 4, (" ball", " bike"))
    assert found.discrepancy.abs().max() < 1e-4
    modes = tlb.attribute_modes(story, [prompt, "Tim had a"], (" ball", " bike"), layers=[4], k=1)
    torch.testing.assert_close(found.table.sum((-2, -1)), modes.shares[0], rtol=0, atol=1e-4)
    first, second, value = found.top(1)[0]
    assert value == float(found.pair(first, second)[0, 0])
    assert "all others" in str(found)
    scores = tlb.score_pairs(story, prompt, 4, 3)
    assert abs(float(scores.discrepancy)) < 1e-4 and scores.tokens == ("st", "st")


def test_bad_input_says_what_to_do():
    model = tiny("LN", hosts()[0])
    tokens = torch.randint(0, 40, (2, 7))
    pairs = {
        "`layer` 2 is out of range": lambda: tlb.source_pairs(model, tokens, 2, 7),
        "token 40 is out of range": lambda: tlb.source_pairs(model, tokens, 1, 40),
        "a prompt is empty": lambda: tlb.source_pairs(model, tokens[:, :0], 1, 7),
        "context of 32": lambda: tlb.source_pairs(model, tokens.repeat(1, 5), 1, 7),
        "no source 'L9H9'": lambda: tlb.source_pairs(model, tokens, 1, 7).pair("L9H9", "constant"),
        "`head` 2 is out of range": lambda: tlb.score_pairs(model, tokens[0], 1, 2),
        "`layer` 5 is out of range": lambda: tlb.score_pairs(model, tokens[0], 5, 0),
        "must be one prompt, got 2": lambda: tlb.score_pairs(model, tokens, 1, 0),
        "`query` 7 is out of range": lambda: tlb.score_pairs(model, tokens[0], 1, 0, 7),
        "`key` -8 is out of range": lambda: tlb.score_pairs(model, tokens[0], 1, 0, -1, -8),
        "which comes later": lambda: tlb.score_pairs(model, tokens[0], 1, 0, 2, 3),
        "does not fit": lambda: tlb.score_pairs(model, tokens[0].repeat(5), 1, 0),
    }
    for words, call in pairs.items():
        with pytest.raises(ValueError, match=words):
            call()
