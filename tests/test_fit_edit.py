"""The solver in float64: its Jacobian and kernel against dense twins, and what an edit does."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from knowing import WORDS, knowing
from models import hosts
from torch import Tensor

import tl_bilinear as tlb
from tl_bilinear.unlearning import Question, accuracy, answer_rows, site_logits
from tl_bilinear.unlearning.answer_rows import site_log_odds
from tl_bilinear.unlearning.bases import down_projections, hidden_units
from tl_bilinear.unlearning.demands import make_demands
from tl_bilinear.unlearning.descent import is_met
from tl_bilinear.unlearning.edit import Edit
from tl_bilinear.unlearning.fit import fit_edit
from tl_bilinear.unlearning.layer_basis import LayerBasis, whiten
from tl_bilinear.unlearning.least_change import least_change
from tl_bilinear.unlearning.levels import invented_names, never_learnt_odds
from tl_bilinear.unlearning.site_gradients import adding, log_odds_gradients
from tl_bilinear.unlearning.text_metric import text_moments, token_rows

TEXTS = tuple(
    " ".join(f"w{(7 * i + 3 * j * j + i * j) % 37}" for j in range(12)) for i in range(24)
)


@pytest.fixture(scope="module", params=hosts())
def model(request):
    return knowing(request.param)


def known_questions(model, count: int) -> list[Question]:
    """Prompts of three words with what a model says behind them."""
    host = tlb.get_host(model)
    found = []
    for i in range(40):
        prompt, other = f"w{i % 37} w{(3 * i + 5) % 37}", f"w{i % 37} w{(5 * i + 11) % 37}"
        said = []
        for text in (prompt, other):
            with torch.no_grad():
                said.append(int(model(host.to_tokens(text)[None])[0, -1].argmax()))
        word = WORDS[said[0]]
        if not word.startswith("w"):
            continue
        wrong = tuple(f" w{(i + k) % 37}" for k in (1, 2, 3) if f"w{(i + k) % 37}" != word)
        same = (other,) if said[0] == said[1] and other != prompt else ()
        found.append(Question(prompt, f" {word}", rewordings=same, wrong=wrong))
    assert len(found) >= count
    return found[:count]


def linear(host) -> list[LayerBasis]:
    return down_projections(host, range(host.n_layers))


def squares(host) -> list[LayerBasis]:
    generator = torch.Generator().manual_seed(1)
    return [
        LayerBasis(
            layer,
            host.d_model,
            host.d_model,
            torch.randn(5, host.d_model, generator=generator, dtype=torch.float64),
            torch.randn(5, host.d_model, generator=generator, dtype=torch.float64),
            squares=True,
            paired=True,
        )
        for layer in range(host.n_layers)
    ]


BASES = {
    "down_projection": linear,
    "units": lambda host: hidden_units(host, range(host.n_layers)),
    "squares": squares,
}


def odds_with(model, rows, changes) -> Tensor:
    with adding(tlb.get_host(model), changes):
        return site_log_odds(site_logits(model, rows), rows.label)


@pytest.mark.parametrize("name", BASES)
def test_jacobian_is_autograds(model, name):
    """At an edit that is not zero, for rows of several sites."""
    host = tlb.get_host(model)
    questions = [Question("w1 w2", " w3 w4"), Question("w5 w6 w7", " w8"), Question("w9", " w1")]
    rows = answer_rows(host, questions)
    bases = BASES[name](host)
    thetas = [0.05 * torch.randn(basis.shape, dtype=torch.float64) for basis in bases]
    logits, found = log_odds_gradients(host, rows, list(zip(bases, thetas, strict=True)))
    leaves = [theta.clone().requires_grad_() for theta in thetas]
    with torch.enable_grad():
        odds = odds_with(model, rows, list(zip(bases, leaves, strict=True)))
    torch.testing.assert_close(
        site_log_odds(logits, rows.label), odds.detach(), rtol=1e-9, atol=1e-9
    )
    for basis, leaf in zip(bases, leaves, strict=True):
        n, w = basis.n_features, basis.n_writers
        one = torch.eye(n, dtype=torch.float64), torch.eye(w, dtype=torch.float64)
        plain = whiten(basis, one[0], one[0] if basis.paired else one[1], 0.0)
        dense = plain.read(found[basis.layer]).dense()
        for site in range(rows.n_sites):
            (expected,) = torch.autograd.grad(odds[site], leaf, retain_graph=True)
            torch.testing.assert_close(dense[site], expected.flatten(), rtol=1e-9, atol=1e-12)
        assert dense.abs().max() > 1e-3


@pytest.mark.parametrize("name", BASES)
def test_kernel_push_and_pull_are_the_dense_jacobians(model, name):
    host = tlb.get_host(model)
    rows = answer_rows(host, known_questions(model, 8))
    bases = BASES[name](host)
    batches = token_rows(host, TEXTS)
    moments = text_moments(host, batches, bases)
    _, found = log_odds_gradients(host, rows, [(b, torch.zeros(b.shape)) for b in bases])
    for basis in bases:
        layer = basis.layer
        white = whiten(basis, moments[layer].features, moments[layer].readings, 1e-2)
        read = white.read(found[layer])
        dense = read.dense()
        assert dense.shape == (rows.n_sites, torch.Size(basis.shape).numel())
        exact, rounding = dense @ dense.mT, 1e-9 * float(dense.square().sum(1).max())
        torch.testing.assert_close(read.kernel(), exact, rtol=1e-9, atol=rounding)
        if not basis.paired:
            other = read.kernel_by_positions()
            torch.testing.assert_close(other, exact, rtol=1e-9, atol=rounding)
        weights = torch.randn(rows.n_sites, dtype=torch.float64)
        torch.testing.assert_close(
            read.pull_back(weights).flatten(), weights @ dense, rtol=1e-9, atol=1e-9
        )
        x = torch.randn(basis.shape, dtype=torch.float64)
        torch.testing.assert_close(read.push(x), dense @ x.flatten(), rtol=1e-9, atol=1e-9)


def test_coordinates_measure_the_cost_on_text(model):
    """|x|^2 is E[phi phi^T] (x) E[g g^T] on theta, as it is written."""
    host = tlb.get_host(model)
    basis = linear(host)[1]
    moments = text_moments(host, token_rows(host, TEXTS), [basis])[1]
    white = whiten(basis, moments.features, moments.readings, 1e-9)
    x = torch.randn(basis.shape, dtype=torch.float64)
    theta = white.theta(x)
    cost = (moments.features @ theta @ moments.readings * theta).sum()
    torch.testing.assert_close(cost, x.square().sum(), rtol=1e-5, atol=0)


def test_moments_of_the_whole_width_are_those_of_any_readers(model):
    host = tlb.get_host(model)
    batches, whole = token_rows(host, TEXTS), linear(host)[1]
    readers = torch.randn(3, whole.width, dtype=torch.float64)
    few = replace(whole, readers=readers)
    expected = text_moments(host, batches, [few])[1]
    found = text_moments(host, batches, [whole])[1].read_by(few)
    torch.testing.assert_close(found.features, expected.features, rtol=1e-9, atol=0)
    assert torch.equal(found.readings, expected.readings)


def test_a_small_edit_does_what_was_foreseen(model):
    host = tlb.get_host(model)
    rows = answer_rows(host, known_questions(model, 6))
    bases = linear(host)
    direction = [torch.randn(basis.shape, dtype=torch.float64) for basis in bases]
    zero = [(basis, torch.zeros(basis.shape, dtype=torch.float64)) for basis in bases]
    _, found = log_odds_gradients(host, rows, zero)
    foreseen = torch.zeros(rows.n_sites, dtype=torch.float64)
    for basis, theta in zip(bases, direction, strict=True):
        moved = found[basis.layer].values @ theta
        foreseen += (moved[rows.site_row] * found[basis.layer].gradients).sum((1, 2))
    with torch.no_grad():
        before = odds_with(model, rows, zero)
        error = []
        for size in (1e-3, 1e-4):
            edit = [(b, size * d) for b, d in zip(bases, direction, strict=True)]
            error.append(
                float((odds_with(model, rows, edit) - before - size * foreseen).abs().max())
            )
    assert foreseen.abs().max() > 0.1
    assert error[1] < 0.02 * error[0] < 1e-3  # second order: a hundredth at a tenth of the size


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 8))
def test_the_least_change_is_optimal(seed, n_sites, n_parameters):
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(n_sites, n_parameters, generator=generator, dtype=torch.float64)
    demand = torch.randn(n_sites, generator=generator, dtype=torch.float64)
    softness = 0.1
    weights = least_change(jacobian @ jacobian.mT, demand, softness)
    x = jacobian.mT @ weights
    missed = (demand - jacobian @ x).clamp_min(0)
    assert bool((weights >= 0).all())
    # The gradient of a convex objective is zero: nothing else is smaller.
    gradient = x - jacobian.mT @ missed / softness
    torch.testing.assert_close(gradient, torch.zeros_like(x), rtol=0, atol=1e-8)


def fitted(model, **options) -> tuple[list[Question], list[Question], Edit]:
    questions = known_questions(model, 10)
    forget, retain = questions[:3], questions[3:]
    options = {
        "texts": TEXTS[:4],
        "contexts": 0,
        "rank": 4,
        "floor": 0.0,
        "clearance": 0.5,
        **options,
    }
    return forget, retain, fit_edit(model, forget, retain, **options)


def require_random_edits_forget_less(model, forget, edit) -> None:
    """Matched in norm, rank and layer; thirty draws."""
    host = tlb.get_host(model)
    known = []
    for draw in range(30):
        generator = torch.Generator().manual_seed(draw)
        changes = []
        for change in edit.changes:
            readers, writers = (
                torch.randn(part.shape, generator=generator, dtype=torch.float64)
                for part in (change.readers, change.writers)
            )
            size = change.weight.norm() / (readers.mT @ writers).norm()
            changes.append(
                (LayerBasis(change.layer, host.d_mlp, host.d_model), size * readers.mT @ writers)
            )
        with adding(host, changes):
            known.append(accuracy(model, forget))
    assert sum(known) / len(known) > 0.3


@pytest.mark.parametrize("basis", ["down_projection", "contrastive"])
def test_an_edit_forgets_and_keeps(model, basis):
    host = tlb.get_host(model)
    before = [host.mlp_weights(layer).tensor.out.clone() for layer in range(host.n_layers)]
    forget, retain, edit = fitted(model, basis=basis)
    assert edit.met and is_met(edit.last), edit.message
    assert set(edit.ranks.values()) <= {0, 1, 2, 3, 4} and edit.n_modes == sum(edit.ranks.values())
    for layer, weight in enumerate(before):  # nothing is edited before it is applied
        assert torch.equal(weight, host.mlp_weights(layer).tensor.out)
    assert accuracy(model, forget) == accuracy(model, retain) == 1
    with edit.applied(model):
        assert accuracy(model, forget) == 0 and accuracy(model, retain) == 1
        hooked = model(host.to_tokens("w1 w2 w3")[None])
    for change in edit.changes:
        assert torch.linalg.matrix_rank(change.weight) <= 4
    require_random_edits_forget_less(model, forget, edit)
    edit.apply_(model)
    try:
        with torch.no_grad():
            written = model(host.to_tokens("w1 w2 w3")[None])
        torch.testing.assert_close(written, hooked.detach(), rtol=1e-9, atol=1e-9)
        assert accuracy(model, forget) == 0 and accuracy(model, retain) == 1
        with pytest.raises(ValueError, match="edited since"):
            edit.apply_(model)
    finally:
        edit.undo_(model)
    for layer, weight in enumerate(before):
        torch.testing.assert_close(host.mlp_weights(layer).tensor.out, weight, rtol=0, atol=1e-12)
        with torch.no_grad():
            host.mlp_weights(layer).tensor.out.copy_(weight)


@pytest.mark.parametrize("d_model, features", [(16, 12), (32, 16)])
def test_an_edit_reads_half_of_d_model_by_default(d_model, features):
    """Or twelve components where that is less."""
    model = knowing(hosts()[0], d_model=d_model)

    def cost(**options) -> float:
        return fitted(model, basis="contrastive", max_steps=1, crossings=0, **options)[-1].last.cost

    assert cost() == cost(features=features)
    assert cost() < 0.999 * cost(features=features - 1)  # more to read, and cheaper


@pytest.mark.parametrize("basis", ["contrastive", "units"])
def test_where_no_step_may_be_taken_the_edit_is_none(basis):
    """A trust region of nothing: the fit says what is missing instead of failing."""
    model = knowing(hosts()[0])
    _, retain, edit = fitted(model, basis=basis, kl_limit=1e-12)
    assert not edit.met and "stopped short" in edit.message
    assert edit.history and not any(step.accepted for step in edit.history)
    assert edit.last.kl < 1e-12 and edit.last.forget_known == 1.0
    before = accuracy(model, retain)
    edit.apply_(model)
    assert accuracy(model, retain) == before


def test_texts_are_read_where_the_limit_may_be_near(monkeypatch):
    """Else at the end alone, for the same edit."""
    model = knowing(hosts()[0])
    never = fitted(model, kl_limit=1e6)[-1]
    monkeypatch.setattr("tl_bilinear.unlearning.descent.CLEARLY_CHEAP", 0.0)
    every = fitted(model, kl_limit=1e6)[-1]
    assert all(math.isnan(step.kl) for step in never.history)
    assert all(step.accepted != math.isnan(step.kl) for step in every.history)
    assert every.last.kl == never.last.kl > 0
    for one, other in zip(every.changes, never.changes, strict=True):
        assert torch.equal(one.weight, other.weight)


def test_an_interrupted_fit_leaves_the_model(model):
    host = tlb.get_host(model)
    tokens = host.to_tokens("w1 w2 w3")[None]
    with torch.no_grad():
        before = model(tokens)

    def stop(step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(model, progress=stop)
    with torch.no_grad():
        assert torch.equal(model(tokens), before)


def test_a_saved_edit_is_the_edited_model(tmp_path):
    model = knowing(hosts()[0], dtype=torch.float32)
    _, _, edit = fitted(model, max_steps=2)
    tokens = tlb.get_host(model).to_tokens("w1 w2 w3")[None]
    edit.apply_(model)
    again = tlb.load(tlb.save_pretrained(model, tmp_path / "edited"))
    with torch.no_grad():
        assert torch.equal(again(tokens), model(tokens))


def test_the_level_is_that_of_wrong_answers(model):
    host = tlb.get_host(model)
    question = Question("w1 w2", " w3", wrong=(" w4", " w5"))
    (level,) = never_learnt_odds(host, [question])
    with torch.no_grad():
        logits = model(host.to_tokens("w1 w2")[None])[0, -1].clone()
    logits[WORDS.index("w3")] = -torch.inf
    p = logits.softmax(0)[[WORDS.index("w4"), WORDS.index("w5")]]
    torch.testing.assert_close(level, (p / (1 - p)).log().mean(), rtol=1e-9, atol=1e-9)
    names = invented_names(20, {"Bado"})
    assert len(set(names)) == 20 and "Bado" not in names and names == invented_names(20, {"Bado"})


def test_forgetting_stops_at_the_level(model):
    forget, retain, edit = fitted(model, target=-3.0)
    rows = answer_rows(model, forget)
    with edit.applied(model), torch.no_grad():
        odds = site_log_odds(site_logits(model, rows), rows.label)
    assert bool((odds < -2.7).all()) and float(odds.max()) > -3.5  # and by no more than needed
    assert 0 < edit.scaled(0.5).changes[0].writers.norm() < edit.changes[0].writers.norm()


def test_demands_leave_spelling_alone(model):
    """Tokens behind the first are language: a number as target binds the first only."""
    host = tlb.get_host(model)
    one, two = known_questions(model, 2)
    demands = make_demands(host, [one], [two], -3.0, floor=2.0, clearance=0.5)
    assert demands.bound[0] == 3.0 and demands.sign.tolist()[0] == -1
    assert bool((demands.margin_bound == 0.5).all())  # one forgotten site and one that wins
    rows = answer_rows(host, [replace(one, answer=one.answer + " w1"), two])
    long = make_demands(
        host, [replace(one, answer=one.answer + " w1")], [two], -3.0, floor=2.0, clearance=0.5
    )
    second = (rows.site_index == 1).nonzero()[:, 0]
    assert bool(long.bound[second].isinf().all() and long.margin_bound[second].isinf().all())
    assert long.pinned.tolist() == [True, False] * len(one.wordings) + [False] * len(two.wordings)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"basis": "rows"}, "`basis` must be one of"),
        ({"basis": "eigenmodes"}, "takes `modes`"),
        ({"texts": "one text"}, "several strings"),
        ({"layers": [7]}, "`layers` must be different layers"),
        ({"rank": 0}, "`rank` must be above 0"),
    ],
)
def test_bad_options(model, options, words, unchecked):
    with pytest.raises(ValueError, match=words):
        fitted(model, **options)


def test_bad_sets(model, unchecked):
    first, second, third = known_questions(model, 3)
    unknown = Question("w1 w2", " w36 w35")
    for forget, retain, words in (
        ([], [first], "`forget` is empty"),
        ([first], [], "`retain` is empty"),
        ([first, second], [second, third], "nothing can be both"),
        ([unknown], [first], "there is little to forget"),
    ):
        with pytest.raises(ValueError, match=words):
            fit_edit(model, forget, retain, texts=TEXTS)
