"""The same questions in more words, so that edits are tied to what is asked and not to a prompt.

Nothing is asked that a question's own wordings do not hold: they stand behind a sentence of general
text, or what one says before the subject meets what another says after it.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from tl_bilinear.unlearning.question import Question

LONGEST = 60


def in_more_words(
    questions: Sequence[Question], texts: Sequence[str], contexts: int, mixed: int, seed: int = 0
) -> tuple[Question, ...]:
    """`recombined`, and the given wordings `in_contexts`."""
    behind = in_contexts(questions, texts, contexts, seed)
    both = zip(questions, recombined(questions, mixed, seed), behind, strict=True)
    return tuple(
        replace(one, rewordings=(*more.rewordings, *late.rewordings[len(one.rewordings) :]))
        for one, more, late in both
    )


def in_contexts(
    questions: Sequence[Question], texts: Sequence[str], count: int, seed: int = 0
) -> tuple[Question, ...]:
    """Every wording as it is, and `count` of them per question behind a sentence of the texts."""
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
            if text not in taken and text not in added:
                added.append(text)
        found.append(replace(question, rewordings=(*question.rewordings, *added)))
    return tuple(found)


def recombined(questions: Sequence[Question], count: int, seed: int = 0) -> tuple[Question, ...]:
    """Every wording as it is, and up to `count` per question made of two of its wordings.

    "A person called X has" and "X's pet is" give "A person called X's pet is" and "X has".
    Questions whose subject does not stand once in each wording stay as they are.
    """
    draw = random.Random(seed)
    found = []
    for question in questions:
        parts = [text.split(question.subject) for text in question.wordings if question.subject]
        if count < 1 or not parts or any(len(part) != 2 for part in parts):
            found.append(question)
            continue
        taken = {*question.wordings, *question.unseen}
        pairs = [before + question.subject + after for before, _ in parts for _, after in parts]
        new = [text for text in dict.fromkeys(pairs) if text not in taken]
        added = draw.sample(new, min(count, len(new)))
        found.append(replace(question, rewordings=(*question.rewordings, *added)))
    return tuple(found)


def _sentences(texts: Sequence[str]) -> list[str]:
    parts = [part.strip() for text in texts for part in re.split(r"(?<=[.!?])\s+", text)]
    return [part for part in parts if 10 <= len(part) <= LONGEST and part[-1] in ".!?"]
