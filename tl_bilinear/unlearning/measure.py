"""One model, measured: what it knows of every set, what it says on text, and what is under it."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.unlearning.answer_rows import Wordings, accuracy, answer_rows, site_logits
from tl_bilinear.unlearning.depth import Depth, measure_depth
from tl_bilinear.unlearning.metrics import (
    AnswerScores,
    TextScores,
    forget_quality,
    mean_scores,
    score_rows,
    score_texts,
    truth_ratios,
)
from tl_bilinear.unlearning.question import Question
from tl_bilinear.unlearning.relearning import Lesson, RelearningConfig, RelearningCurve, relearn
from tl_bilinear.unlearning.rounding import round_weights_


@dataclass(frozen=True)
class AskedScores:
    """A set of questions, asked in some of its wordings."""

    answers: AnswerScores
    truth_ratios: tuple[float, ...]
    """One per wording of every question that has wrong answers."""


@dataclass(frozen=True)
class KeptScores:
    """A set that must be kept: questions, texts, or both."""

    asked: AskedScores | None
    text: TextScores | None


@dataclass(frozen=True)
class RoundedScores:
    """The model with its weights rounded."""

    bits: int
    forget_accuracy: float
    retain_accuracy: float
    kl: float
    """From the unedited, unrounded model, per token."""


@dataclass(frozen=True)
class ModelScores:
    """Everything that is measured on one model; None or empty where it could not be computed."""

    forget: AskedScores
    retain: AskedScores
    text: TextScores
    """On held-out texts, against the unedited model."""
    forget_unseen: AskedScores | None = None
    """In the wordings that no edit has seen."""
    retain_unseen: AskedScores | None = None
    near: KeptScores | None = None
    far: KeptScores | None = None
    forget_quality: float | None = None
    """p-value of the KS test of its forget truth ratios against gold's."""
    forget_quality_unseen: float | None = None
    rounding: tuple[RoundedScores, ...] = ()
    relearning: tuple[RelearningCurve, ...] = ()
    depth: Depth | None = None


@dataclass(frozen=True)
class Measures:
    """What to measure, on what."""

    forget: tuple[Question, ...]
    retain: tuple[Question, ...]
    texts: tuple[str, ...]
    """Held out: the edit has not seen them."""
    near: tuple[Question | str, ...] = ()
    far: tuple[Question | str, ...] = ()
    lessons: tuple[Lesson, ...] = ("facts", "half", "text")
    relearning: RelearningConfig = field(default_factory=RelearningConfig)
    bits: tuple[int, ...] = (8, 4)
    depth: bool = True
    seed: int = 0


def measure_model(
    model: Any, original: Any, measures: Measures, gold: ModelScores | None = None
) -> ModelScores:
    """Measure a model, which is not changed.

    Args:
        original: the unedited model: KL is taken from it.
        gold: the scores of a model trained without the forget set, for the forget quality.
    """
    host = get_host(model)
    forget = _asked(host, measures.forget, "edit")
    unseen = _asked_if_any(host, measures.forget, "unseen")
    return ModelScores(
        forget=forget,
        retain=_asked(host, measures.retain, "edit"),
        text=score_texts(model, original, measures.texts),
        forget_unseen=unseen,
        retain_unseen=_asked_if_any(host, measures.retain, "unseen"),
        near=_kept(host, original, measures.near),
        far=_kept(host, original, measures.far),
        forget_quality=_quality(forget, gold.forget if gold else None),
        forget_quality_unseen=_quality(unseen, gold.forget_unseen if gold else None),
        rounding=tuple(_rounded(model, original, measures, bits) for bits in measures.bits),
        relearning=tuple(
            relearn(
                model,
                measures.forget,
                measures.texts,
                lesson,
                measures.relearning,
                measures.seed,
                retain=measures.retain,
            )
            for lesson in measures.lessons
        ),
        depth=(
            measure_depth(model, measures.forget, measures.retain, seed=measures.seed)
            if measures.depth
            else None
        ),
    )


def _asked(host: AbstractHost, questions: Sequence[Question], wordings: Wordings) -> AskedScores:
    rows = answer_rows(host, questions, wordings=wordings)
    with torch.no_grad():
        right = score_rows(site_logits(host, rows), rows)
        if not any(question.wrong for question in questions):
            return AskedScores(mean_scores(right), ())
        others = answer_rows(host, questions, wordings=wordings, answers="wrong")
        wrong = score_rows(site_logits(host, others), others)
    ratios = truth_ratios(right.nll, rows, wrong.nll, others)
    return AskedScores(mean_scores(right), tuple(ratios.tolist()))


def _asked_if_any(
    host: AbstractHost, questions: Sequence[Question], wordings: Wordings
) -> AskedScores | None:
    # A question without unseen wordings has nothing to be asked in.
    asked = [question for question in questions if question.unseen]
    return _asked(host, asked, wordings) if asked else None


def _kept(host: AbstractHost, original: Any, kept: Sequence[Question | str]) -> KeptScores | None:
    if not kept:
        return None
    questions = [each for each in kept if isinstance(each, Question)]
    texts = [each for each in kept if isinstance(each, str)]
    return KeptScores(
        asked=_asked(host, questions, "all") if questions else None,
        text=score_texts(host.model, original, texts) if texts else None,
    )


def _quality(asked: AskedScores | None, gold: AskedScores | None) -> float | None:
    if asked is None or gold is None or not asked.truth_ratios or not gold.truth_ratios:
        return None
    ours, theirs = (torch.tensor(each.truth_ratios).double() for each in (asked, gold))
    return forget_quality(ours, theirs)


def _rounded(model: Any, original: Any, measures: Measures, bits: int) -> RoundedScores:
    rounded = copy.deepcopy(model)
    round_weights_(rounded, bits)
    return RoundedScores(
        bits=bits,
        forget_accuracy=accuracy(rounded, measures.forget),
        retain_accuracy=accuracy(rounded, measures.retain),
        kl=score_texts(rounded, original, measures.texts).kl,
    )


Progress = Callable[[str], None]


def silent(step: str) -> None:
    """Progress that nobody watches."""
