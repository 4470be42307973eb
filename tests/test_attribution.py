"""Attributions sum to the model's own numbers, on every host, norm and target."""

import pytest
import torch
from models import hosts, native

import tl_bilinear as tlb
from tl_bilinear import NotBilinearError
from tl_bilinear.attribution import mode_activations, reading_tokens, top_examples
from tl_bilinear.hosts.reading import denominators, take_reading

PROMPT = "Lily saw a boy named Tim. Tim was sad because he lost"
TARGETS = {
    "token id": 7,
    "pair of ids": (7, 9),
    "direction": torch.linspace(-1, 1, 16, dtype=torch.float64),
}
NORMS = ["LN", "RMS", "LNPre", "RMSPre", None]


def tolerance(host: str, norm: str | None) -> float:
    """Float64, but native bridges' RMS and parameter-free norms compute in float32."""
    return 1e-9 if host == "hooked_transformer" or norm in ("LN", None) else 1e-5


# One host per major: the bridge's turn is TransformerLens 4's; tiny models have both below.
@pytest.fixture(scope="module", params=hosts()[:1])
def story(request):
    return tlb.load("stories-5l", host=request.param)


@torch.no_grad()
def brute_force(model, tokens, target) -> tuple[torch.Tensor, torch.Tensor]:
    """The target's value and each MLP's direct effect, from TransformerLens' own cache."""
    host = tlb.get_host(model)
    logits, cache = model.run_with_cache(tokens)
    if isinstance(target, tuple):
        w = model.W_U[:, target[0]] - model.W_U[:, target[1]]
        value = logits[:, -1, target[0]] - logits[:, -1, target[1]]
    elif isinstance(target, int):
        w, value = model.W_U[:, target], logits[:, -1, target]
    else:
        norm = host.final_norm()
        final = cache[host.final_input_site()][:, -1]
        out = final * (1 if norm.gain is None else norm.gain)
        value = (out + (0 if norm.bias is None else norm.bias)) @ target
        w = target
    shares = []
    for layer in range(host.n_layers):
        out = cache[host.mlp_out_site(layer)][:, -1]
        norm = host.final_norm()
        if norm.centred:
            out = out - out.mean(-1, keepdim=True)
        scale = cache["ln_final.hook_scale"][:, -1] if norm.exists else 1.0
        gain = 1.0 if norm.gain is None else norm.gain
        shares.append((gain * out / scale) @ w.to(out))
    return value, torch.stack(shares)


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("gauge", ["none", "traceless"])
def test_modes_sum_to_every_mlps_share_and_to_the_target(host, norm, target, gauge):
    model, target = native(norm, host), TARGETS[target]
    tokens = torch.randint(0, 40, (3, 9))
    exact = tolerance(host, norm)
    value, shares = brute_force(model, tokens, target)
    full = tlb.attribute_modes(model, tokens, target, k=None, gauge=gauge)
    scale = float(shares.abs().max())
    assert full.remainder.abs().max() < 1e-9 * scale
    rebuilt = full.eigenvalues[:, None] * full.activations**2 / full.denominators[..., None]
    torch.testing.assert_close(full.contributions, rebuilt, rtol=1e-12, atol=1e-12 * scale)
    torch.testing.assert_close(full.shares[..., 0], shares.double(), rtol=exact, atol=exact * scale)
    torch.testing.assert_close(full.target[:, 0], value.double(), rtol=exact, atol=exact * scale)
    total = full.shares.sum(0) + full.rest
    torch.testing.assert_close(total, full.target, rtol=1e-12, atol=1e-12 * scale)
    kept = tlb.attribute_modes(model, tokens, target, k=3, layers=[1], gauge=gauge)
    assert kept.contributions.shape == (1, 3, 1, 3)
    torch.testing.assert_close(kept.shares[0], full.shares[1], rtol=1e-9, atol=1e-9 * scale)
    torch.testing.assert_close(kept.contributions[0], full.contributions[1, ..., :3])


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("norm", NORMS)
def test_components_close_on_the_models_own_logit(host, norm):
    model = native(norm, host)
    tokens = torch.randint(0, 40, (2, 9))
    exact = tolerance(host, norm)
    for target in TARGETS.values():
        parts = tlb.attribute_components(model, tokens, target)
        scale = float(parts.mlps.abs().max() + parts.target.abs().max())
        assert parts.discrepancy.abs().max() < exact * scale
        modes = tlb.attribute_modes(model, tokens, target)
        torch.testing.assert_close(parts.mlps, modes.shares, rtol=exact, atol=exact * scale)


def test_story_model_closes_for_strings_pairs_and_several_tokens(story):
    for target in (" his", (" his", " her"), (" ball", " bike"), " ball", (" ball", " balloon")):
        parts = tlb.attribute_components(story, [PROMPT, "Tim saw a"], target)
        assert parts.discrepancy.abs().max() < 1e-4
        modes = tlb.attribute_modes(story, [PROMPT, "Tim saw a"], target)
        torch.testing.assert_close(modes.target, parts.target, rtol=0, atol=1e-5)
        torch.testing.assert_close(modes.shares, parts.mlps, rtol=0, atol=1e-4)


def test_a_string_is_the_sum_of_its_teacher_forced_logits(story):
    tokens = story.to_tokens(PROMPT + " ball")[0]
    length = story.to_tokens(PROMPT).shape[1]
    with torch.no_grad():
        logits = story(tokens[None])[0]
    places = torch.arange(length, len(tokens))
    expected = logits[places - 1, tokens[places]].sum()
    found = tlb.attribute_modes(story, PROMPT, " ball")
    assert len(found.sites) == len(tokens) - length > 1
    torch.testing.assert_close(found.total[0], expected.double(), rtol=0, atol=1e-4)


def test_shared_first_tokens_of_a_pair_cancel(story):
    pair = tlb.attribute_modes(story, PROMPT, (" ball", " bike"))
    first, second = (tlb.attribute_modes(story, PROMPT, word) for word in (" ball", " bike"))
    torch.testing.assert_close(pair.total, first.total - second.total, rtol=0, atol=1e-4)


def test_batch_equals_one_by_one_whatever_the_padding(story):
    prompts = [PROMPT, "Tim saw a", "Once upon a time, there was a"]
    batch = tlb.attribute_modes(story, prompts, (" his", " her"))
    for row, prompt in enumerate(prompts):
        single = tlb.attribute_modes(story, prompt, (" his", " her"))
        torch.testing.assert_close(
            batch.contributions[:, row], single.contributions[:, 0], rtol=0, atol=1e-4
        )
        assert batch.positions[row] == single.positions[0]


def test_tokens_and_text_give_the_same(story):
    tokens = story.to_tokens(PROMPT)
    text = tlb.attribute_modes(story, PROMPT, " his")
    for given in (tokens, tokens[0]):
        ids = tlb.attribute_modes(story, given, " his")
        torch.testing.assert_close(ids.contributions, text.contributions)


def test_all_hosts_give_the_same_numbers():
    found = [
        tlb.attribute_modes(tlb.load("stories-5l", host=host), PROMPT, (" his", " her"))
        for host in hosts()
    ]
    for other in found[1:]:
        torch.testing.assert_close(other.contributions, found[0].contributions, rtol=0, atol=1e-4)
        assert other.provenance.fingerprint == found[0].provenance.fingerprint


def test_linear_and_constant_parts_are_those_of_the_biases():
    model = native("LN", hosts()[0])
    tokens = torch.randint(0, 40, (2, 5))
    assert tlb.attribute_modes(model, tokens, 3).linear.abs().max() > 1e-3
    host = tlb.get_host(model)
    u = host.fold_readout(model.W_U[:, 3].detach().double())
    found = tlb.attribute_modes(model, tokens, 3)
    rho = model.run_with_cache(tokens)[1]["ln_final.hook_scale"][:, -1, 0]
    expected = (host.mlp_map(0).constant().double() @ u) / rho.double()
    torch.testing.assert_close(found.constant[0, :, 0], expected, rtol=1e-6, atol=1e-9)


def test_top_is_ordered_and_ready_for_ablation(story):
    found = tlb.attribute_modes(story, PROMPT, (" his", " her"))
    rows = found.top(5)
    sizes = [abs(value) for _, value in rows]
    assert sizes == sorted(sizes, reverse=True)
    mode, value = rows[0]
    host = tlb.get_host(story)
    streams = host.read_streams(host.to_tokens(PROMPT)[None], [mode.layer])[mode.layer]
    rho = float(denominators(host, take_reading(host, PROMPT, (" his", " her"), [])))
    expected = float(mode.contributions(streams[0, -1].double())) / rho
    assert value == pytest.approx(expected, rel=1e-5)
    assert str(mode.layer) in repr(mode)


@pytest.mark.parametrize("host", hosts())
def test_a_cache_gives_what_the_prompt_gives(host):
    model = native("LN", host)
    tokens = torch.randint(0, 40, (2, 9))
    _, cache = model.run_with_cache(tokens)
    for target in TARGETS.values():
        for positions in ("last", "all"):
            given = {"target": target, "positions": positions}
            fresh = tlb.attribute_modes(model, tokens, **given)
            cached = tlb.attribute_modes(model, cache, **given)
            torch.testing.assert_close(cached.contributions, fresh.contributions)
            torch.testing.assert_close(cached.target, fresh.target)
            torch.testing.assert_close(cached.rest, fresh.rest, rtol=1e-7, atol=1e-9)
            parts = tlb.attribute_components(model, cache, **given)
            torch.testing.assert_close(parts.total, fresh.target)
    _, small = model.run_with_cache(tokens, names_filter="ln_final.hook_scale")
    with pytest.raises(ValueError, match="the cache lacks"):
        tlb.attribute_modes(model, small, 7)


@pytest.mark.parametrize("host", hosts())
def test_all_positions_equal_the_last_position_of_every_beginning(host):
    model = native("RMS", host)
    tokens = torch.randint(0, 40, (2, 6))
    everywhere = tlb.attribute_modes(model, tokens, (3, 4), positions="all")
    assert everywhere.contributions.shape == (2, 2, 6, 16)
    assert len(set(everywhere.sites)) == 6
    for position in range(6):
        last = tlb.attribute_modes(model, tokens[:, : position + 1], (3, 4))
        torch.testing.assert_close(
            everywhere.contributions[:, :, position],
            last.contributions[:, :, 0],
            rtol=1e-6,
            atol=1e-9,
        )
        torch.testing.assert_close(everywhere.target[:, position], last.target[:, 0])


def test_a_model_that_is_not_bilinear_is_refused():
    gated = tlb.load("stories-5l-swiglu", check=False)
    with pytest.raises(NotBilinearError, match="frozen_gates=True to read it on a prompt"):
        tlb.attribute_modes(gated, PROMPT, " his")


def test_reading_tokens_are_sorted_by_activation(story):
    mode = tlb.attribute_modes(story, PROMPT, (" his", " her")).mode(0, 0)
    reading = reading_tokens(story, mode, k=5)
    positive = [value for _, value in reading.positive]
    negative = [value for _, value in reading.negative]
    assert positive == sorted(positive, reverse=True) and negative == sorted(negative)
    assert positive[0] > negative[0] and len(positive) == len(negative) == 5


def test_reading_tokens_among_some(story):
    mode = tlb.attribute_modes(story, PROMPT, (" his", " her")).mode(0, 0)
    ids = sorted(set(story.to_tokens(PROMPT)[0].tolist()))
    names = set(tlb.get_host(story).str_tokens(torch.tensor(ids)))
    found = reading_tokens(story, mode, k=50, among=ids)
    assert {name for name, _ in found.positive} == names
    assert found.positive == found.negative[::-1]
    with pytest.raises(ValueError, match="holds no token id"):
        reading_tokens(story, mode, among=[9999])


def test_examples_are_the_largest_activations(story):
    modes = [tlb.attribute_modes(story, PROMPT, (" his", " her")).mode(4, i) for i in (0, 1)]
    texts = ["Tom had a dog.", "Lily lost her ball. She was sad.", "The sun was hot and red."]
    found = top_examples(story, modes, texts, k=2, window=2)
    for index, mode in enumerate(modes):
        peaks = []
        for text in texts:
            _, activations = mode_activations(story, text, [mode])
            peaks.append(float(activations[1:, 0].abs().max()))
        best = sorted(range(3), key=lambda i: -peaks[i])[:2]
        assert [example.text for example in found[index]] == best
        for example in found[index]:
            assert abs(example.activations[example.peak]) == pytest.approx(peaks[example.text])
            assert len(example.tokens) == len(example.activations) <= 5
            assert "<s>" not in example.tokens


def test_bad_input_says_what_to_do(story):
    cases = {
        "begin the target with a space": (PROMPT + " hi", "s"),
        "the target is an empty string": (PROMPT, ""),
        "are the same tokens": (PROMPT, (" his", " his")),
        "token 512 is out of range": (PROMPT, 512),
        r"must have shape \[64\]": (PROMPT, torch.ones(3)),
        "not finite": (PROMPT, torch.full((64,), float("nan"))),
        "a prompt is empty": ("", " his"),
        "does not fit the model's context of 512": ("so " * 600, " his"),
    }
    for words, (prompt, target) in cases.items():
        with pytest.raises(ValueError, match=words):
            tlb.attribute_modes(story, prompt, target)
    with pytest.raises(ValueError, match='positions="all" cannot append the first tokens'):
        tlb.attribute_modes(story, PROMPT, " ball", positions="all")
    with pytest.raises(ValueError, match="needs prompts of one length"):
        tlb.attribute_modes(story, [PROMPT, "Tim"], " his", positions="all")
    with pytest.raises(ValueError, match="`layers` must be different layers of this model's 5"):
        tlb.attribute_modes(story, PROMPT, " his", layers=[5])
    with pytest.raises(ValueError, match="`k` must be between 1 and d_model = 64, got 0"):
        tlb.attribute_modes(story, PROMPT, " his", k=0)
