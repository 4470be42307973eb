"""Wordings that nobody gave: the beginning of one given wording with the end of another.

An edit that is fitted to a few prompts may leave an answer standing in others. Crossed wordings are
half way between the given ones, in words that the model has met there, and so they find such
answers where prompts with words left out, swapped or drawn at random hardly find any.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from tl_bilinear.unlearning.question import Question, whole_word

CROSSINGS = 8
HERE = "\0"
"""Stands for the subject, which is never cut apart."""


def require_count(crossings: int) -> None:
    """Raises:
    ValueError: what is no whole number from 0.
    """
    if crossings != int(crossings) or crossings < 0:
        raise ValueError(f"`crossings` must be a whole number, 0 or more, got {crossings}")


def crossed(
    questions: Sequence[Question],
    most: int,
    seed: int = 0,
    fits: Callable[[str], bool] = lambda _: True,
) -> dict[int, Question]:
    """By its index each question in at most `most` crossed wordings instead of its own.

    A crossed wording names the subject once, and is none that the question has (neither one of
    those that edits may use nor an unseen one). Questions without a subject, or with one wording
    that names it, have none and are left out.

    Args:
        most: per question, drawn from all that there are.
        fits: whether a prompt with its answer is short enough for the model; others are left out.
    """
    draw = random.Random(seed)
    found = {}
    for index, question in enumerate(questions):
        taken = {*question.wordings, *question.unseen}
        texts = [text for text in _crossings(question) if text not in taken]
        texts = [text for text in texts if fits(text + question.answer)]
        kept = draw.sample(texts, min(most, len(texts)))
        if kept:
            found[index] = replace(question, prompt=kept[0], rewordings=tuple(kept[1:]), unseen=())
    return found


def _crossings(question: Question) -> list[str]:
    if not question.subject:
        return []
    named = [whole_word(question.subject).sub(HERE, text) for text in question.wordings]
    parts = [text.split() for text in named if text.count(HERE) == 1]
    texts = {
        " ".join([*first[:cut], *last[rest:]])
        for first in parts
        for last in parts
        if first != last
        for cut in range(1, len(first))
        for rest in range(1, len(last))
    }
    return [text.replace(HERE, question.subject) for text in sorted(texts) if text.count(HERE) == 1]
