"""How soon a model learns again what it was made to forget.

Three lessons, each on a copy of the model, the answers' tokens alone being trained on:

    facts    the forget questions themselves, edit's wordings: steps until they are known again
    half     half of them (whole subjects), and as many retained questions; measured on the other
             half, which the lesson does not teach: what comes back there was still in the model (a
             leak). Without the retained ones a lesson on a few facts makes any model forget the
             others, and nothing would come back from anywhere
    text     ordinary text, in which no forgotten subject or wording stands: what comes back was
             only covered
             (2510.07626: the three differ)
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional

from tl_bilinear.hosts import get_host
from tl_bilinear.training.train import TrainingConfig, next_token_loss, train
from tl_bilinear.unlearning.answer_rows import AnswerRows, answer_rows, known_rows, site_logits
from tl_bilinear.unlearning.methods.batches import text_windows
from tl_bilinear.unlearning.question import Question, named

Lesson = Literal["facts", "half", "text"]


@dataclass(frozen=True)
class RelearningConfig:
    """How a model is taught again: AdamW at a constant rate, without weight decay.

    Raises:
        ValueError: numbers that are not above 0.
    """

    steps: int = 64
    every: int = 4
    """Steps between two measurements."""
    learning_rate: float = 1e-3
    rows: int = 32
    """Rows of a step."""

    def __post_init__(self):
        for name in ("steps", "every", "learning_rate", "rows"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}: give a number above 0")


@dataclass(frozen=True)
class RelearningCurve:
    """Accuracy on what the lesson's name says, in the edit's wordings."""

    lesson: Lesson
    steps: tuple[int, ...]
    """0 is before the lesson."""
    accuracy: tuple[float, ...]

    def steps_to(self, level: float) -> int | None:
        """The first measured step with at least this accuracy; None where it is never reached."""
        pairs = zip(self.steps, self.accuracy, strict=True)
        return next((step for step, value in pairs if value >= level), None)


def relearn(
    model: Any,
    forget: Sequence[Question],
    texts: Sequence[str],
    lesson: Lesson,
    config: RelearningConfig = RelearningConfig(),  # noqa: B008 (frozen)
    seed: int = 0,
    *,
    retain: Sequence[Question] = (),
) -> RelearningCurve:
    """Teach a copy of the model one lesson; the model itself is not changed.

    Args:
        retain: what the model shall go on knowing: taught along with "half".

    Raises:
        ValueError: a lesson that is none of `lessons_for` these.
    """
    student = copy.deepcopy(model)
    host = get_host(student)
    rows = answer_rows(host, forget)
    measured, taught = rows, rows
    if lesson == "half":
        chosen = half_of(forget, seed)[rows.question]
        taught, measured = rows.select(chosen), rows.select(~chosen)
    beside = answer_rows(host, retain) if lesson == "half" and retain else None
    if lesson == "text":
        texts = unrelated(texts, forget)
    batches, loss = _lesson(host, taught, beside, texts, lesson, config, seed)

    def known(_: Any = None) -> dict[str, float]:
        with torch.no_grad():
            found = float(known_rows(site_logits(host, measured), measured).double().mean())
        curve.append(found)
        return {"known": found}

    curve: list[float] = []
    known()
    settings = TrainingConfig(
        n_steps=config.steps,
        learning_rate=config.learning_rate,
        decay="constant",
        warmup_steps=0,
        weight_decay=0.0,
        seed=seed,
    )
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    with torch.enable_grad():
        train(
            student,
            batches,
            settings,
            loss=loss,
            evaluate=known,
            evaluate_every=config.every,
            progress=False,
        )
    places = [step for step in range(1, config.steps + 1) if _due(step, config)]
    return RelearningCurve(lesson, (0, *places), tuple(curve))


def lessons_for(forget: Sequence[Question], texts: Sequence[str]) -> tuple[Lesson, ...]:
    """Those that can be given: "half" takes two subjects, and "text" a text that names none."""
    found: list[Lesson] = ["facts"]
    if len(set(_subjects(forget))) > 1:
        found.append("half")
    if unrelated(texts, forget):
        found.append("text")
    return tuple(found)


def unrelated(texts: Sequence[str], forget: Sequence[Question]) -> tuple[str, ...]:
    """The texts in which no forgotten subject and no wording of the forget set stands."""
    subjects = {q.subject for q in forget if q.subject}
    asked = {text for q in forget for text in (*q.wordings, *q.unseen)}
    return tuple(
        text
        for text in texts
        if not any(named(subject, text) for subject in subjects)
        and not any(wording in text for wording in asked)
    )


def half_of(questions: Sequence[Question], seed: int) -> Bool[Tensor, " question"]:
    """Which questions make one half: whole subjects, or single questions where none is named.

    Raises:
        ValueError: fewer than two subjects.
    """
    names = _subjects(questions)
    subjects = list(dict.fromkeys(names))
    if len(subjects) < 2:
        raise ValueError("half of the forget set cannot be taught: it has one subject alone")
    order = torch.randperm(len(subjects), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = {subjects[place] for place in order[: len(subjects) // 2]}
    return torch.tensor([name in chosen for name in names])


def _subjects(questions: Sequence[Question]) -> list[str]:
    """What makes one whole of each question: its subject, or its prompt where none is named."""
    return [q.subject or q.prompt for q in questions]


def _lesson(
    host: Any,
    taught: AnswerRows,
    beside: AnswerRows | None,
    texts: Sequence[str],
    lesson: Lesson,
    config: RelearningConfig,
    seed: int,
) -> tuple[Callable[[int], Any], Callable[[Any, Any], Tensor]]:
    if lesson == "text":
        return text_windows(host, texts, seed), next_token_loss

    def batch(step: int) -> AnswerRows:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = _drawn(taught, config.rows, generator)
        return rows if beside is None else rows.joined(_drawn(beside, rows.n_rows, generator))

    def loss(_: Any, rows: AnswerRows) -> Tensor:
        return functional.cross_entropy(site_logits(host, rows).float(), rows.label.to(host.device))

    return batch, loss


def _due(step: int, config: RelearningConfig) -> bool:
    return step == config.steps or step % config.every == 0


def _drawn(rows: AnswerRows, count: int, generator: torch.Generator) -> AnswerRows:
    if rows.n_rows <= count:
        return rows
    return rows.select(torch.randperm(rows.n_rows, generator=generator)[:count])
