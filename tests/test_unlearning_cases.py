"""Unlearning where a user easily errs: gradients off, odd questions, layers, texts and targets."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from knowing import knowing
from models import hosts
from taught import facts, taught, texts
from test_fit_edit import TEXTS, known_questions

import tl_bilinear as tlb
from tl_bilinear.dictionary import Dictionary
from tl_bilinear.unlearning import Question, RelearningConfig, accuracy
from tl_bilinear.unlearning.contexts import in_contexts
from tl_bilinear.unlearning.fit import fit_edit
from tl_bilinear.unlearning.levels import _about, never_learnt_odds

FEW: dict[str, Any] = {"texts": TEXTS[:8], "contexts": 0, "max_steps": 6, "clearance": 0.5}
SHORT: dict[str, Any] = {
    "texts": texts(8),
    "seeds": 1,
    "trials": 1,
    "relearning": RelearningConfig(steps=1, every=1),
}


@pytest.mark.parametrize("host", hosts())
def test_every_host_is_measured_and_left_as_it_was(host):
    own = taught(host)
    found = tlb.unlearn(own, *facts(), method="leace", baselines=(), **SHORT)
    assert found.provenance.host != "" and accuracy(own, facts()[0]) == 1.0
    assert found.result.scores[0].retain.answers.n_rows == 16


@pytest.fixture(scope="module")
def model():
    return knowing(hosts()[0])


@pytest.fixture(scope="module")
def sets(model):
    questions = known_questions(model, 12)
    return questions[:3], questions[3:]


def test_gradients_may_be_off(model, sets):
    with torch.no_grad():
        edit = fit_edit(model, *sets, rank=4, floor=0.0, **FEW)
        found = tlb.find_modes(model, *sets, k=4)
        assert tlb.editable(model, *sets).ok and len(found) == 4
        assert tlb.output_modes(model, *sets, k=1, moments="gradients").n_modes == 2
    again = fit_edit(model, *sets, rank=4, floor=0.0, **FEW)
    for one, other in zip(edit.changes, again.changes, strict=True):
        assert torch.equal(one.weight, other.weight)


def test_found_modes_are_ablated_as_they_are(model, sets):
    found = tlb.find_modes(model, *sets, k=3)
    tokens = torch.tensor([[1, 4, 9]])
    logits = []
    for modes in (found, list(found.modes)):
        with torch.no_grad(), tlb.ablate(model, modes):
            logits.append(model(tokens))
    assert torch.equal(*logits) and not torch.equal(logits[0], model(tokens))


def test_a_baseline_that_cannot_be_had_is_named(unchecked):
    gated = taught(hosts()[0], act_fn="silu")
    report = tlb.unlearn(
        gated, *facts(), method="random_directions", baselines=["modes", "leace"], **SHORT
    )
    assert [each.method for each in report.baselines] == ["leace"]
    (why,) = [each.why for each in report.missing if each.what == "baseline modes"]
    assert "gate" in why
    assert "baseline modes" in report.to_markdown()


def test_near_and_far_are_questions_or_texts(unchecked):
    own = taught(hosts()[0])
    quick = {**SHORT, "method": "none", "baselines": []}
    text = "w1 w2 w3 w4"
    alone = tlb.unlearn(own, *facts(), near=text, far=facts()[1][0], **quick)  # pyright: ignore
    listed = tlb.unlearn(own, *facts(), near=[text], far=facts()[1][:1], **quick)
    assert alone.before.near == listed.before.near and alone.before.far == listed.before.far
    with pytest.raises(ValueError, match="`near` must hold .*Question objects or texts, got dict"):
        tlb.unlearn(own, *facts(), near=[{"prompt": "a"}], **quick)  # pyright: ignore


def test_levels_that_cannot_be_told_are_said_beforehand(model, sets):
    forget, retain = sets
    bare = [replace(forget[0], wrong=())]
    longer = [replace(forget[0], wrong=(forget[0].answer + " w1",))]
    for questions in (bare, longer):
        verdict = tlb.editable(model, questions, retain)
        assert not verdict.ok and "nothing says how likely" in verdict.verdict
        with pytest.raises(ValueError, match="nothing says how likely .* `subject`"):
            fit_edit(model, questions, retain, **FEW)
    # Beside another wrong answer, one that only goes on is passed over.
    other = [replace(forget[0], wrong=(*longer[0].wrong, *forget[0].wrong))]
    host = tlb.get_host(model)
    plain = [replace(forget[0], rewordings=())], [replace(other[0], rewordings=())]
    torch.testing.assert_close(*(never_learnt_odds(host, each) for each in plain))


def test_a_subject_is_a_word():
    question = Question("Once upon on a", " time", subject="on")
    assert _about(question, "Zob").prompt == "Once upon Zob a"


def test_a_target_fits_the_sites_that_are_asked(model, sets):
    host, (forget, retain) = tlb.get_host(model), sets
    level = never_learnt_odds(host, forget)
    edit = fit_edit(model, forget, retain, rank=4, floor=0.0, target=level, **FEW)
    same = fit_edit(model, forget, retain, rank=4, floor=0.0, **FEW)
    assert all(
        torch.equal(a.weight, b.weight) for a, b in zip(edit.changes, same.changes, strict=True)
    )
    for wrong in (level[:1], torch.cat([level, level])):
        with pytest.raises(ValueError, match="`target` has shape .*contexts=0"):
            fit_edit(model, forget, retain, target=wrong, **FEW)


def test_ranks_are_those_of_the_weights():
    story = tlb.load("stories-2l", host=hosts()[0])
    forget = [Question("Once upon a", " time", wrong=(" day", " dog"))]
    retain = [Question("One", " day"), Question("They lived happily ever", " after")]
    edit = fit_edit(story, forget, retain, rank=12)
    for change in edit.changes:
        assert change.rank == torch.linalg.matrix_rank(change.weight.double(), rtol=1e-9)
    assert edit.met and edit.n_modes < 24  # not what was allowed, but what there is


def test_an_edit_is_not_undone_where_it_was_never_made(sets):
    own = knowing(hosts()[0])
    edit = fit_edit(own, *sets, rank=4, floor=0.0, **FEW)
    with pytest.raises(ValueError, match="has no edit to be undone"):
        edit.undo_(own)
    edit.apply_(own)
    assert accuracy(own, sets[0]) == 0
    edit.undo_(own)
    assert accuracy(own, sets[0]) == 1


def test_layers_and_dictionaries_are_checked(model, sets, unchecked):
    eye, zero = torch.eye(16, dtype=torch.float64), torch.zeros(16, dtype=torch.float64)
    before = Dictionary(eye, zero, eye, zero, "relu", "blocks.1.ln2.hook_normalized")
    with pytest.raises(ValueError, match="is before layer 1 writes"):
        tlb.find_modes(model, *sets, directions=before, layers=[1])
    assert len(tlb.find_modes(model, *sets, directions=before, layers=[0], k=2)) == 2
    calls: tuple[Any, ...] = (tlb.find_modes, tlb.output_modes, fit_edit)
    for call in calls:
        for layers in ([], [2], [0.5], "01"):
            with pytest.raises(ValueError, match="`layers` must be different layers"):
                call(model, *sets, layers=layers)
    with pytest.raises(ValueError, match="`rank` must be a whole number"):
        fit_edit(model, *sets, rank=2.5, **FEW)  # pyright: ignore
    modes = tlb.find_modes(model, *sets, layers=[1], k=2).modes
    with pytest.raises(ValueError, match=r"of layers \[1\], which `layers` leave out"):
        fit_edit(model, *sets, basis="eigenmodes", modes=modes, layers=[0], **FEW)


def test_contexts_that_do_not_fit_are_left_out():
    question = Question("w1 w2", " w3")
    sentences = ["a sentence that is long enough."]
    (with_context,) = in_contexts([question], sentences, 1)
    assert len(with_context.rewordings) == 1
    (alone,) = in_contexts([question], sentences, 1, fits=lambda text: len(text) < 20)
    assert alone == question
