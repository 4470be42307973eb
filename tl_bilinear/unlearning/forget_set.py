"""Whether a forget set and a retain set can be told apart and are known at all."""

from collections.abc import Sequence
from typing import Any

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.unlearning.answer_rows import accuracy
from tl_bilinear.unlearning.question import Question, require_questions

LEAST_KNOWN = 0.5


def require_forgettable(
    host: AbstractHost | Any, forget: Sequence[Question], retain: Sequence[Question]
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """Both sets as tuples.

    Raises:
        ValueError: an empty set, one prompt with one answer in both, a token that the model lacks,
            or a forget set of which the model knows less than half.
    """
    forget = require_questions("forget", forget)
    retain = require_questions("retain", retain)
    shared = shared_prompts(forget, retain)
    if shared:
        raise ValueError(
            f"{len(shared)} prompts are in `forget` and in `retain` with the same answer, as "
            f"{shared[0]!r}: nothing can be both forgotten and kept. Take them out of one set"
        )
    known = accuracy(host, forget)
    if known < LEAST_KNOWN:
        raise ValueError(
            f"the model knows {known:.0%} of `forget`: there is little to forget. Give questions "
            "that it answers (tl_bilinear.editable says which)"
        )
    return forget, retain


def shared_prompts(forget: Sequence[Question], retain: Sequence[Question]) -> list[str]:
    """Prompts, of any wording, that both sets hold with the same answer."""
    kept = {(text, q.answer) for q in retain for text in (*q.wordings, *q.unseen)}
    return [text for q in forget for text in (*q.wordings, *q.unseen) if (text, q.answer) in kept]
