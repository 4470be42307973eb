"""The same questions behind a sentence of general text, so that edits are not tied to a place."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from tl_bilinear.unlearning.question import Question

LONGEST = 60


def in_contexts(
    questions: Sequence[Question],
    texts: Sequence[str],
    count: int,
    seed: int = 0,
    fits: Callable[[str], bool] = lambda _: True,
) -> tuple[Question, ...]:
    """Every wording as it is, and `count` of them per question behind a sentence of the texts.

    Args:
        fits: whether a prompt with its answer is short enough for the model; others are left out.
    """
    sentences = _sentences(texts)
    if not sentences or count < 1:
        return tuple(questions)
    draw = random.Random(seed)
    found = []
    for question in questions:
        taken = {*question.wordings, *question.unseen}
        added: list[str] = []
        for turn in range(count):
            wording = question.wordings[turn % len(question.wordings)]
            text = f"{draw.choice(sentences)} {wording}"
            if text not in taken and text not in added and fits(text + question.answer):
                added.append(text)
        found.append(replace(question, rewordings=(*question.rewordings, *added)))
    return tuple(found)


def _sentences(texts: Sequence[str]) -> list[str]:
    parts = [part.strip() for text in texts for part in re.split(r"(?<=[.!?])\s+", text)]
    return [part for part in parts if 10 <= len(part) <= LONGEST and part[-1] in ".!?"]
