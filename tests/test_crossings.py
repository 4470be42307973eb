"""Crossed wordings: what they are, and what an edit leaves standing in them."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import hosts
from taught import facts, taught, teach_, texts

import tl_bilinear as tlb
from tl_bilinear.unlearning import Question, accuracy, answer_rows, site_logits
from tl_bilinear.unlearning.answer_rows import known_rows, site_log_odds, site_margins
from tl_bilinear.unlearning.crossings import crossed
from tl_bilinear.unlearning.demands import make_demands
from tl_bilinear.unlearning.descent import is_met
from tl_bilinear.unlearning.fit import fit_edit
from tl_bilinear.unlearning.guards import crossed_demands
from tl_bilinear.unlearning.repair import repair_, take_anchor

FORGET, RETAIN = facts()
COLOR = Question(
    "Ada Byron's favorite color is",
    " red",
    rewordings=("The color that Ada Byron loves is", "We say that Ada Byron likes"),
    unseen=("The color is",),
    subject="Ada Byron",
)
words = st.lists(st.sampled_from(["the", "color", "of", "is", "Kim", "Kim's", "likes"]), max_size=6)


@pytest.fixture(scope="module", params=hosts()[:1])  # the bridge's turn is TransformerLens 4's
def model(request):
    """It was told the facts in crossed wordings as well: what an edit of the others may leave."""
    found = taught(request.param)
    teach_(found, also=[q for each in (FORGET, RETAIN) for q in crossed(each, 1000).values()])
    return found


def brute(question: Question) -> set[str]:
    """Every beginning of one wording with every end of another, the subject as one word."""
    whole = [w.replace(question.subject, "SUBJECT").split() for w in question.wordings]
    found = set()
    for first in whole:
        for last in whole:
            for cut in range(1, len(first)):
                for rest in range(1, len(last)):
                    parts = first[:cut] + last[rest:]
                    if first != last and sum("SUBJECT" in part for part in parts) == 1:
                        found.add(" ".join(parts).replace("SUBJECT", question.subject))
    return found - {*question.wordings, *question.unseen}


def test_crossings_are_beginnings_with_ends():
    (found,) = crossed([COLOR], 1000).values()
    assert set(found.wordings) == brute(COLOR) and len(found.wordings) > 20
    assert "The color that Ada Byron loves color is" in found.wordings
    assert "The color that Ada Byron likes" in found.wordings
    # Fewer are drawn, by one seed always the same.
    few = crossed([COLOR], 5, seed=1)[0].wordings
    assert (
        len(few) == 5 and set(few) < brute(COLOR) and few == crossed([COLOR], 5, seed=1)[0].wordings
    )
    assert few != crossed([COLOR], 5, seed=2)[0].wordings
    assert not found.unseen and found.answer == COLOR.answer


@given(st.lists(words, min_size=1, max_size=4))
def test_crossings_name_the_subject_once_and_are_new(drawn):
    texts = list(dict.fromkeys(" ".join(each) for each in drawn if each))
    if not texts:
        return
    question = Question(texts[0], " red", rewordings=tuple(texts[1:]), subject="Kim")
    for found in crossed([question], 50).values():
        assert len(set(found.wordings)) == len(found.wordings)
        assert not {*found.wordings} & {*question.wordings}
        assert all(text.count("Kim") == 1 for text in found.wordings)


def test_questions_without_crossings_are_left_out():
    alone = replace(COLOR, rewordings=())
    nameless = replace(COLOR, subject="")
    other = replace(COLOR, subject="Ada Lovelace")  # stands in no wording
    assert list(crossed([alone, COLOR, nameless, other], 3)) == [1]
    assert crossed([COLOR], 3, fits=lambda text: len(text) < 10) == {}
    assert crossed([COLOR], 0) == {}


def test_joined_demands_are_both(model):
    """The joined rows are asked the same as each of the two alone."""
    host = tlb.get_host(model)
    one = make_demands(host, FORGET[:2], RETAIN[:3], -2.0, floor=2.0, clearance=1.0)
    longer = [replace(RETAIN[4], prompt=f"w3 w4 w5 {RETAIN[4].prompt}", rewordings=(), unseen=())]
    two = make_demands(host, FORGET[2:3], longer, -1.0, floor=1.0, clearance=3.0)
    both = one.joined(two)
    with torch.no_grad():
        parts = [each.shortfall(site_logits(host, each.rows)) for each in (one, two)]
        whole = both.shortfall(site_logits(host, both.rows))
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-9, atol=1e-9)
    assert both.rows.tokens.shape[1] == two.rows.tokens.shape[1] > one.rows.tokens.shape[1]
    assert torch.equal(both.forget, torch.cat([one.forget, two.forget]))
    assert both.rows.question.max() == 6 and both.rows.site_row.max() == both.rows.n_rows - 1


def demands_of(host, most: int, clearance: float = 2.0):
    own = make_demands(host, FORGET, RETAIN, -2.0, floor=2.0, clearance=clearance)
    found = crossed_demands(host, own, FORGET, RETAIN, most, clearance=clearance, seed=0)
    assert found is not None
    return found


def test_crossed_demands_are_losing_and_go_on_winning(model):
    """Against rows asked one by one."""
    host = tlb.get_host(model)
    found = demands_of(host, 3)
    mine, other = (crossed(each, 3, 0, host.fits) for each in (FORGET, RETAIN))
    rows = answer_rows(host, [*mine.values(), *other.values()])
    with torch.no_grad():
        logits = site_logits(host, rows)
        wins = known_rows(logits, rows)
        short = found.shortfall(site_logits(host, found.rows))
    of_forget = rows.question < len(mine)
    margins, odds = site_margins(logits, rows.label), site_log_odds(logits, rows.label)
    expected = [
        2 + margins[row]
        if of_forget[row]
        else torch.max(0.5 - margins[row], odds[row].clamp_max(0) - odds[row])
        for row in (of_forget | wins).nonzero()[:, 0].tolist()  # one token each: row = site
    ]
    torch.testing.assert_close(short, torch.stack(expected), rtol=1e-9, atol=1e-9)
    assert bool((~of_forget & ~wins).any()) and bool((~of_forget & wins).any())


def test_the_token_that_tells_is_asked(model):
    """An answer whose first token everybody says: the second tells, in crossed wordings too."""
    host = tlb.get_host(model)
    question = replace(FORGET[0], answer=f" w7{FORGET[0].answer}", wrong=())
    level = torch.tensor([20.0, -20.0] * 2, dtype=torch.float64)  # of two wordings
    own = make_demands(host, [question], RETAIN, level, floor=2.0, clearance=2.0)
    found = crossed_demands(host, own, [question], RETAIN, 2, clearance=2.0, seed=0)
    assert found is not None
    of_forget = found.forget[found.rows.site_row]
    assert found.margin_bound[of_forget].tolist() == [-math.inf, 2.0] * 2
    assert not found.bound[of_forget].isfinite().any()


def fitted(model, crossings: int, forget=FORGET, **options):
    settings = {"texts": texts(8), "contexts": 0, "rank": 4, "target": -1.0, "clearance": 1.0}
    return fit_edit(model, forget, RETAIN, crossings=crossings, **{**settings, **options})


def asked(model, edit) -> float:
    """The share of all crossed wordings that say their answer behind an edit."""
    questions = list(crossed(FORGET, 1000).values())
    with edit.applied(model):
        return accuracy(model, questions)


def test_crossed_wordings_are_forgotten_as_well(model):
    plain, edit = fitted(model, 0), fitted(model, 8)
    assert plain.met and plain.message == "every demand is met"
    assert edit.met and is_met(edit.last) and "crossed wordings said their answer" in edit.message
    assert asked(model, plain) > 0.2  # there is something to find
    assert asked(model, edit) < 0.1
    assert edit.history[: len(plain.history) - 1] == plain.history[:-1]
    assert len(edit.history) > len(plain.history)
    with edit.applied(model):
        assert accuracy(model, FORGET) == 0 and accuracy(model, RETAIN) == 1


def test_an_edit_as_dear_that_asks_none_leaves_them(model):
    """The control: as much KL, spent on a larger clearance in the given wordings alone."""
    edit = fitted(model, 8)
    dear = next(
        (
            found
            for clearance in (2.0, 3.0, 4.0, 6.0, 8.0)
            if (found := fitted(model, 0, clearance=clearance)).last.kl >= edit.last.kl
        ),
        None,
    )
    assert dear is not None and asked(model, edit) < asked(model, dear) / 2


def test_what_costs_more_than_it_gains_is_not_taken(model, monkeypatch):
    """Where the sum does not fall, the edit is the one without crossed wordings, to the bit."""
    from tl_bilinear.unlearning import guards

    monkeypatch.setattr(guards._Found, "score", property(lambda self: -self.known))
    plain, edit = fitted(model, 0), fitted(model, 8)
    assert "costs more KL" in edit.message and edit.last.cost == plain.last.cost
    for one, other in zip(plain.changes, edit.changes, strict=True):
        assert torch.equal(one.weight, other.weight)


def test_what_unmends_given_wordings_is_not_taken(model, monkeypatch):
    from tl_bilinear.unlearning import guards

    monkeypatch.setattr(guards, "is_met", lambda step: False)
    plain, edit = fitted(model, 0), fitted(model, 8)
    assert "unmends given ones" in edit.message and edit.last.cost == plain.last.cost


@pytest.mark.parametrize("harder, said", [(1000, "and now 0.0%"), (1, "unmends given ones")])
def test_demands_that_give_way_are_asked_harder(model, monkeypatch, harder, said):
    """Crossed wordings whose rounds are a thousand times softer than the fit before them."""
    from tl_bilinear.unlearning import guards

    descend, calls = guards.Fit.descend, []

    def softened(fit, *args):
        calls.append(fit.softness)
        if len(calls) == 2:
            fit.softness *= 1000
        return descend(fit, *args)

    monkeypatch.setattr(guards.Fit, "descend", softened)
    monkeypatch.setattr(guards, "HARDER", harder)
    assert said in fitted(model, 8).message
    assert calls[-1] == pytest.approx(1000 * calls[1] / harder)


def test_where_none_says_its_answer_nothing_is_done():
    """A model that was never told in crossed wordings, and questions that it does not answer so."""
    model = taught(hosts()[0])
    quiet = [q for q in FORGET if accuracy(model, list(crossed([q], 8).values())) == 0]
    assert quiet
    plain, edit = fitted(model, 0, quiet), fitted(model, 8, quiet)
    said = f"none of {4 * len(quiet)} crossed wordings says its answer"
    assert edit.message == f"every demand is met; {said}"
    assert len(edit.history) == len(plain.history)
    for one, other in zip(plain.changes, edit.changes, strict=True):
        assert torch.equal(one.weight, other.weight)


@pytest.mark.one_major(4)
def test_a_repair_leaves_crossed_wordings_forgotten(model):
    """The control: a repair that does not ask them brings their answers back."""
    kept = {name: each.clone() for name, each in model.state_dict().items()}
    options = {"contexts": 0, "target": -1.0}
    anchors = [take_anchor(model, FORGET, RETAIN, texts(8), crossings=n, **options) for n in (8, 0)]
    assert anchors[0].demands.rows.n_rows > anchors[0].n_given == anchors[1].demands.rows.n_rows
    edit, known = fitted(model, 8), []
    questions = list(crossed(FORGET, 1000).values())
    try:
        edit.apply_(model)
        edited = {name: each.clone() for name, each in model.state_dict().items()}
        for anchor in anchors:
            model.load_state_dict(edited)
            done = repair_(model, anchor, learning_rate=1e-3, pull=0, steps=120)
            assert done.kept and done.kl[1] < done.kl[0] / 2
            assert accuracy(model, FORGET) == 0 and accuracy(model, RETAIN) == 1
            known.append(accuracy(model, questions))
    finally:
        model.load_state_dict(kept)
    assert known[0] < 0.1 and known[1] > 0.15


@pytest.mark.parametrize("count", [-1, 1.5])
def test_counts_that_are_none(model, count, unchecked):
    words = f"`crossings` must be a whole number, 0 or more, got {count}"
    with pytest.raises(ValueError, match=words):
        fitted(model, count)
    with pytest.raises(ValueError, match=words):
        take_anchor(model, FORGET, RETAIN, texts(8), crossings=count)
