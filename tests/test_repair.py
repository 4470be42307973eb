"""The fine-tuning behind an edit: what it mends, what it must not bring back, when it is undone."""

from dataclasses import replace

import pytest
import torch
from knowing import knowing
from models import hosts
from taught import facts, taught, texts
from test_find_modes import FEW, split
from test_fit_edit import TEXTS

from tl_bilinear.unlearning import accuracy
from tl_bilinear.unlearning.fit import fit_edit
from tl_bilinear.unlearning.metrics import score_texts
from tl_bilinear.unlearning.repair import repair_, take_anchor

FORGET, RETAIN = facts()
ASKED = {"contexts": 0, "target": -1.0}
SHORT = {"steps": 40, "learning_rate": 2e-3, "pin": 0.1}


@pytest.fixture(scope="module", params=hosts()[:1])
def edited(request):
    """A taught model behind an edit, its weights, and what it was before."""
    model = taught(request.param)
    anchor = take_anchor(model, FORGET, RETAIN, texts(8), **ASKED)
    fit_edit(model, FORGET, RETAIN, texts=texts(8), **ASKED).apply_(model)
    return model, {name: each.clone() for name, each in model.state_dict().items()}, anchor


def repaired(edited, anchor=None, **options):
    model, weights, own = edited
    model.load_state_dict(weights)
    return model, repair_(model, own if anchor is None else anchor, **options)


@torch.no_grad()
def distance(model, anchor) -> float:
    gone = [(p - anchor.weights[name]).square().sum() for name, p in model.named_parameters()]
    return float(torch.stack(gone).sum().sqrt())


def test_repair_lowers_the_kl_and_keeps_the_pin():
    own = knowing(hosts()[0])
    forget, retain = split(own)
    anchor = take_anchor(own, forget, retain, TEXTS[:8], contexts=0, clearance=0.5)
    edit = fit_edit(own, forget, retain, rank=4, floor=0.0, **FEW)
    edit.apply_(own)
    done = repair_(own, anchor, steps=15, learning_rate=1e-3)
    assert done.kept and done.kl[1] < done.kl[0] and done.forget_known == (0.0, 0.0)
    assert accuracy(own, forget) == 0 and len(done.losses) == 15
    assert done.message == f"repaired: KL {done.kl[0]:.4f} -> {done.kl[1]:.4f}"


def test_a_repair_that_is_interrupted_or_does_harm_leaves_the_model(monkeypatch):
    own = knowing(hosts()[0])
    forget, retain = split(own)
    anchor = take_anchor(own, forget, retain, TEXTS[:8], contexts=0, clearance=0.5)
    before = [p.detach().clone() for p in own.parameters()]

    def same() -> bool:
        return all(torch.equal(p, q) for p, q in zip(own.parameters(), before, strict=True))

    harm = repair_(own, anchor, steps=2, learning_rate=1.0, pull=0)
    assert not harm.kept and same()
    assert harm.message.startswith("a repair was tried and undone: KL rose from 0.0000 to ")
    step = torch.optim.Adam.step
    calls: list[int] = []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        repair_(own, anchor, steps=4)
    assert same()


@pytest.mark.one_major(3)
def test_the_pull_leads_back_and_mends_what_the_texts_do_not_show(edited):
    """The control: the same repair without it, on texts that neither has read."""
    anchor, before = edited[2], taught(hosts()[0])
    found = []
    for pull in (0.0, 4.0):
        model, done = repaired(edited, pull=pull, **SHORT)
        assert done.kept and done.pull == pull and accuracy(model, FORGET) == 0
        found.append((distance(model, anchor), score_texts(model, before, texts(24)[8:]).kl))
    assert found[1][0] < 0.9 * found[0][0] and found[1][1] < 0.95 * found[0][1]


@pytest.mark.one_major(3)
def test_a_pull_that_brings_answers_back_is_taken_off(edited):
    model, done = repaired(edited, pull=400.0, **SHORT)
    assert done.kept and done.pull == 0 and accuracy(model, FORGET) == 0
    without = {name: each.clone() for name, each in model.state_dict().items()}
    model, plain = repaired(edited, pull=0.0, **SHORT)
    assert plain == done
    for name, each in model.state_dict().items():
        assert torch.equal(each, without[name]), name


@pytest.mark.one_major(3)
def test_harm_may_be_kept(edited):
    """The control of the tables: a repair of the unedited model, which costs KL as all forgetting
    does, and is undone otherwise."""
    model, _, anchor = edited
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(anchor.weights[name])
    assert accuracy(model, FORGET) == 1
    undone = repair_(model, anchor, pull=0.0, **SHORT)
    assert not undone.kept and accuracy(model, FORGET) == 1
    done = repair_(model, anchor, pull=0.0, undo_harm=False, **SHORT)
    assert done.kept and done.kl[0] == 0 < done.kl[1] and accuracy(model, FORGET) < 0.5


@pytest.mark.one_major(3)
def test_parameters_of_another_shape_are_not_pulled(edited):
    """As of an edit that gave a layer more neurons."""
    anchor = edited[2]
    name = next(iter(anchor.weights))
    other = replace(anchor, weights={name: anchor.weights[name][..., :1]})
    model, done = repaired(edited, other, pull=5.0, steps=8)
    weights = {name: each.clone() for name, each in model.state_dict().items()}
    model, plain = repaired(edited, pull=0.0, steps=8)
    assert done.losses == plain.losses
    for name, each in model.state_dict().items():
        assert torch.equal(each, weights[name]), name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pull": -1.0}, "`pull` must be 0 or more, got -1.0"),
        ({"steps": 0}, "give steps and a learning rate above 0, got 0, "),
    ],
)
def test_numbers_that_are_none(edited, options, words):
    with pytest.raises(ValueError, match=words):
        repaired(edited, **options)
