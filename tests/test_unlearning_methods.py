"""Every way to unlearn on a tiny model that was taught facts, beside what must do nothing."""

import copy
from typing import Any

import pytest
import torch
from models import hosts
from taught import facts, taught, texts

import tl_bilinear as tlb
from tl_bilinear.ablation import rms_contribution
from tl_bilinear.hosts.corpus import mlp_streams
from tl_bilinear.unlearning import accuracy, answer_rows, site_logits, site_margins
from tl_bilinear.unlearning.find import find_modes
from tl_bilinear.unlearning.methods import METHODS, Problem, method_named, random_modes
from tl_bilinear.unlearning.methods.descent import row_nll
from tl_bilinear.unlearning.methods.difference_of_means import DifferenceOfMeans, mean_difference
from tl_bilinear.unlearning.methods.grad_diff import GradDiff
from tl_bilinear.unlearning.methods.hinge import Hinge
from tl_bilinear.unlearning.methods.leace import LEACE
from tl_bilinear.unlearning.methods.mlp_output import mlp_outputs
from tl_bilinear.unlearning.methods.modes import Modes
from tl_bilinear.unlearning.methods.npo import NPO, negative_preference_loss
from tl_bilinear.unlearning.methods.random_directions import RandomDirections
from tl_bilinear.unlearning.methods.random_modes import RandomModes
from tl_bilinear.unlearning.methods.rmu import RMU
from tl_bilinear.unlearning.metrics import score_texts
from tl_bilinear.unlearning.passes import count_passes
from tl_bilinear.unlearning.rounding import round_weights_
from tl_bilinear.unlearning.tuning import run_trial, tune

FORGET, RETAIN = facts()
STEPS = 24


@pytest.fixture(scope="module", params=hosts())
def model(request):
    return taught(request.param)


@pytest.fixture(scope="module")
def first():
    """One host, for what does not depend on it and takes long."""
    return taught(hosts()[0])


def problem(model: Any, seed: int = 0) -> Problem:
    return Problem(tuple(FORGET), tuple(RETAIN), tuple(texts()), seed, copy.deepcopy(model))


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def edited(model: Any, method: Any, seed: int = 0) -> Any:
    copied = copy.deepcopy(model)
    method.edit_(copied, problem(model, seed))
    return copied


def test_the_model_was_taught(model):
    assert accuracy(model, FORGET, "all") == accuracy(model, RETAIN, "all") == 1.0


GRADIENT = [
    Hinge(learning_rate=1e-2, steps=STEPS, depth=2.0),
    GradDiff(learning_rate=1e-2, steps=STEPS, forget_weight=3.0),
    NPO(learning_rate=1e-2, steps=STEPS, beta=0.3),
    RMU(learning_rate=3e-2, steps=32, layer=1, steering=6.0, retain_weight=6.0),
]


@pytest.mark.one_major(4)
@pytest.mark.parametrize("method", GRADIENT, ids=lambda method: method.name)
def test_gradient_methods_forget_and_keep(first, method):
    forgets_and_keeps(first, method)


@pytest.mark.parametrize("host", hosts()[-1:])
def test_they_do_on_a_bridge(host):
    forgets_and_keeps(taught(host), GRADIENT[3])


def forgets_and_keeps(model: Any, method: Any) -> None:
    before = weights(model)
    after = edited(model, method)
    assert accuracy(after, FORGET) <= 0.25
    assert accuracy(after, RETAIN) >= accuracy(after, FORGET) + 0.5
    assert all(torch.equal(p, before[name]) for name, p in weights(model).items())
    assert all(p.requires_grad and p.grad is None for p in after.parameters())
    # Only what the method trains has moved.
    changed = {n for n, p in after.named_parameters() if not torch.equal(p, before[n])}
    allowed = {"hinge": "mlp", "rmu": "mlp"}.get(method.name, "")
    assert changed and all(allowed in name for name in changed)


def test_without_a_forget_term_nothing_is_forgotten(first):
    control = GradDiff(learning_rate=1e-2, steps=STEPS // 2, forget_weight=0.0)
    assert accuracy(edited(first, control), FORGET) == 1.0
    assert accuracy(edited(first, METHODS["none"]()), FORGET) == 1.0


def test_npo_is_half_of_dpo():
    nll, original = torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.1])
    ratio = torch.exp(-nll) / torch.exp(-original)
    expected = (2 / 0.3) * torch.log(1 + ratio**0.3).mean()  # 2404.05868, equation 3
    torch.testing.assert_close(negative_preference_loss(nll, original, 0.3), expected)


def test_row_nll_is_the_whole_answers(model):
    rows = answer_rows(model, FORGET, wordings="all")
    with torch.no_grad():
        logits = site_logits(model, rows)
    expected = [
        -logits[rows.site_row == row]
        .float()
        .log_softmax(1)[
            torch.arange(int((rows.site_row == row).sum())), rows.label[rows.site_row == row]
        ]
        .sum()
        for row in range(rows.n_rows)
    ]
    torch.testing.assert_close(row_nll(logits, rows), torch.stack(expected))


@pytest.mark.parametrize("concept", ["forget", "answers"])
def test_leace_is_in_the_weights(model, concept):
    after = edited(model, LEACE(layers=(1,), concept=concept))
    host = tlb.get_host(after)
    outputs, rows = mlp_outputs(host, problem(model), [1])
    values = torch.cat([outputs[1].forget, outputs[1].retain])
    labels = LEACE(concept=concept)._labels(outputs[1], rows)
    centred = labels - labels.mean(0)
    assert (values - values.mean(0)).mT.matmul(centred).abs().max() < 1e-8
    # The mean is kept: the output bias carries what the projection took.
    there, _ = mlp_outputs(tlb.get_host(model), problem(model), [1])
    both = torch.cat([there[1].forget, there[1].retain])
    torch.testing.assert_close(values.mean(0), both.mean(0), rtol=1e-9, atol=1e-9)
    assert (both - both.mean(0)).mT.matmul(centred).abs().max() > 1e-3


def test_the_mean_difference_is_projected_out(model):
    after = edited(model, DifferenceOfMeans(layers=(0,)))
    outputs, _ = mlp_outputs(tlb.get_host(model), problem(model), [0])
    direction = mean_difference(outputs[0])
    there, _ = mlp_outputs(tlb.get_host(after), problem(model), [0])
    assert (there[0].forget @ direction).abs().max() < 1e-9
    assert (outputs[0].forget @ direction).abs().max() > 1e-3
    torch.testing.assert_close(
        there[0].retain,
        outputs[0].retain - torch.outer(outputs[0].retain @ direction, direction),
        rtol=1e-9,
        atol=1e-9,
    )


def test_random_directions_take_out_as_much(model):
    outputs, _ = mlp_outputs(tlb.get_host(model), problem(model), [0])
    there, _ = mlp_outputs(
        tlb.get_host(edited(model, RandomDirections(layers=(0,)), seed=4)), problem(model), [0]
    )
    values = torch.cat([outputs[0].forget, outputs[0].retain])
    taken = values - torch.cat([there[0].forget, there[0].retain])
    wanted = (values @ mean_difference(outputs[0])).square().mean()
    assert float(taken.square().sum(1).mean()) == pytest.approx(float(wanted), rel=1e-9)


def test_modes_are_masked_and_random_ones_are_as_large(first, monkeypatch):
    # That removing them forgets is not claimed: on this model, as on the story model, it hardly
    # does (facts/unlearning.md 5).
    after = edited(first, Modes(k=96))
    ranks = [tlb.get_host(each).mlp_weights(0).tensor.rank for each in (first, after)]
    assert ranks[1] > ranks[0] and margin(after) < margin(first) - 1
    drawn: list[Any] = []
    monkeypatch.setattr(random_modes, "ablate_", lambda model, modes: drawn.extend(modes))
    edited(first, RandomModes(k=6), seed=2)
    found = find_modes(first, FORGET, RETAIN, k=6).modes
    assert len(drawn) == len(found) == 6
    for mode, other in zip(found, drawn, strict=True):
        x = mlp_streams(first, mode.layer, texts())
        assert (mode.layer, *mode.direction) == (other.layer, *other.direction)
        assert rms_contribution(other, x) == pytest.approx(rms_contribution(mode, x), rel=1e-9)
        assert abs(float(mode.eigenvector @ other.eigenvector)) < 0.99


def margin(model: Any) -> float:
    rows = answer_rows(model, FORGET)
    with torch.no_grad():
        return float(site_margins(site_logits(model, rows), rows.label).mean())


@pytest.mark.one_major(3)
def test_fit_edit_forgets_and_keeps():
    # 16 dimensions have no room for twelve facts and the text: there it stops, and says so.
    roomy = taught(hosts()[0], d_model=32, d_head=16, d_mlp=64)
    method = method_named("fit_edit").candidates(tlb.get_host(roomy))[0]
    after = copy.deepcopy(roomy)
    said = method.edit_(after, problem(roomy))
    assert said is not None and said.startswith("every demand is met; ") and "repair" in said
    assert accuracy(after, FORGET, "all") == 0
    assert accuracy(after, RETAIN, "all") == accuracy(after, RETAIN, "unseen") == 1


def test_every_method_is_named_and_has_as_many_trials(model):
    for name, method in METHODS.items():
        candidates = method.candidates(tlb.get_host(model))
        assert method_named(name) is method and method.name == name and method.source
        assert 1 <= len(candidates) <= 4 and len(set(map(repr, candidates))) == len(candidates)
    with pytest.raises(ValueError, match="unknown method 'nop': give one of none, "):
        method_named("nop")
    with pytest.raises(ValueError, match="give it as gold="):
        method_named("gold")


def test_passes_are_counted(model):
    copied = copy.deepcopy(model)
    with count_passes(copied) as passes:
        Hinge(steps=3).edit_(copied, problem(model))
    # Per step the forget rows, the retain rows and the text, each forward and backward.
    assert (passes.forward, passes.backward) == (9, 9) and passes.tokens > 0
    with count_passes(copied) as passes:
        accuracy(copied, FORGET)
    assert (passes.forward, passes.backward) == (1, 0)


def test_a_failed_trial_is_recorded(first):
    trial = run_trial(Hinge(steps=0), first, problem(first))
    assert trial.error and trial.score == float("inf") and trial.kl is None
    best, trials = tune(DifferenceOfMeans, first, problem(first))
    assert len(trials) >= 3 and not any(t.error for t in trials)
    assert min(t.score for t in trials) == next(
        t.score for t in trials if dict(t.settings)["layers"] == str(dict(best.settings)["layers"])
    )


def test_rounding_changes_little_at_8_bits_and_more_at_4(model):
    changes = []
    for bits in (8, 4):
        copied = copy.deepcopy(model)
        round_weights_(copied, bits)
        changes.append(score_texts(copied, model, texts()).kl)
    assert 0 < changes[0] < 0.02 < changes[1]
    with pytest.raises(ValueError, match="between 2 and 16"):
        round_weights_(model, 1)


@pytest.mark.skipif(len(hosts()) < 2, reason="one host alone")
@pytest.mark.parametrize("name", ["stories-1l", "stories-5l"])  # the second has grouped keys
def test_rounding_is_the_same_on_both_hosts(name):
    from tl_bilinear.hosts import get_host

    tokens = get_host(tlb.load(name)).to_tokens("Once upon a time")[None]
    logits = []
    for host in hosts():
        loaded = tlb.load(name, host=host)
        round_weights_(loaded, 4)
        with torch.no_grad():
            logits.append(loaded(tokens).log_softmax(-1))
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)


def test_kl_by_hand(model):
    other = edited(model, DifferenceOfMeans(layers=(0,)))
    found = score_texts(other, model, texts()[:5])
    divergence, loss, n, m = 0.0, 0.0, 0, 0
    for text in texts()[:5]:
        tokens = tlb.get_host(model).to_tokens(text)
        with torch.no_grad():
            p, q = (each(tokens[None])[0].softmax(-1) for each in (model, other))
        for i in range(len(tokens)):
            divergence += float((p[i] * (p[i] / q[i]).log()).sum())
            n += 1
            if i + 1 < len(tokens):
                loss -= float(q[i, tokens[i + 1]].log())
                m += 1
    assert found.n_tokens == n and found.kl > 0
    assert found.kl == pytest.approx(divergence / n, rel=1e-9)
    assert found.nll == pytest.approx(loss / m, rel=1e-9)
    assert score_texts(model, model, texts()[:5]).kl == 0
