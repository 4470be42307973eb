"""Lessons in what was forgotten: which can be given, and what they teach."""

import pytest
import torch
from models import hosts
from taught import facts, taught, texts

from tl_bilinear.unlearning import Question, RelearningConfig
from tl_bilinear.unlearning.relearning import half_of, lessons_for, relearn, unrelated

# Hooks and weights of each host are others' tests: this is about data and a training loop.
pytestmark = pytest.mark.one_major(3)

FORGET, RETAIN = facts()
BRIEF = RelearningConfig(steps=8, every=4, learning_rate=2e-2)


def test_halves_are_whole_subjects():
    chosen = half_of(FORGET, seed=3)
    assert chosen.sum() == 2
    names = [q.subject for q in FORGET]
    taught_names = {n for n, c in zip(names, chosen.tolist(), strict=True) if c}
    assert not taught_names & {n for n, c in zip(names, chosen.tolist(), strict=True) if not c}
    with pytest.raises(ValueError, match="one subject alone"):
        half_of(FORGET[:1], 0)


def test_relearning_is_the_same_every_time():
    model = taught(hosts()[0])
    curves = [relearn(model, FORGET, texts(6), "text", BRIEF, seed=1) for _ in range(2)]
    assert curves[0] == curves[1]
    with pytest.raises(ValueError, match="`steps` is 0"):
        RelearningConfig(steps=0)


def test_half_a_lesson_keeps_what_it_does_not_teach():
    """With retained questions beside it: without them the other half is lost to every model."""
    model, gold = (taught(hosts()[0], without_forget=each) for each in (False, True))
    strong = RelearningConfig(steps=16, every=2, learning_rate=2e-2)

    def left(student, **options) -> float:
        """Mean over the steps and four ways to halve the facts."""
        curves = [
            relearn(student, FORGET, texts(6), "half", strong, seed, **options).accuracy[1:]
            for seed in range(4)
        ]
        return float(torch.tensor(curves).mean())

    assert left(model, retain=RETAIN) > left(model) + 0.15
    assert left(gold, retain=RETAIN) < left(model, retain=RETAIN) - 0.15  # nothing to be kept


def test_lessons_that_can_be_given():
    lines = ["w1 w2 w3", "w10 w0 w5", "w7 w10 w11 w2 w9"]
    # w0 and w1 are forgotten subjects; w10 is another word.
    assert unrelated(lines, FORGET) == (lines[2],)
    assert unrelated(["w13 w12 w20"], [Question("w13 w12", " w20")]) == ()
    assert lessons_for(FORGET, lines) == ("facts", "half", "text")
    assert lessons_for(FORGET, lines[:2]) == ("facts", "half")
    assert lessons_for(FORGET[:1], lines[1:2]) == ("facts",)
