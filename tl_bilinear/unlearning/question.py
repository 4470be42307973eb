"""One thing that a model may know: a prompt, its answer, and other ways to ask it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """What follows which prompts.

    A model knows a question in a wording where every token of the answer is the most likely one
    behind that prompt and the tokens of the answer before it (teacher-forced).

    Raises:
        ValueError: an empty prompt or answer, an answer that is among the wrong ones, a wording
            given twice, a single string where several belong.
    """

    prompt: str
    """The wording that edits may use."""
    answer: str
    """What follows, with its leading space."""
    rewordings: tuple[str, ...] = ()
    """Other prompts with the same answer, that edits may use as well."""
    unseen: tuple[str, ...] = ()
    """Prompts that only measurements use."""
    wrong: tuple[str, ...] = ()
    """Answers that are as likely a priori: what a model that knows nothing may say."""
    subject: str = ""
    relation: str = ""

    def __post_init__(self):
        for name in ("prompt", "answer", "subject", "relation"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"a question's `{name}` must be a string, got {self._given(name)}")
        for name in ("rewordings", "unseen", "wrong"):
            given = getattr(self, name)
            if isinstance(given, str) or not all(isinstance(text, str) for text in given):
                raise ValueError(
                    f"a question's `{name}` must be a tuple of strings, got {self._given(name)}"
                )
            object.__setattr__(self, name, tuple(given))
        for name, texts in (
            ("prompt", (self.prompt, *self.rewordings, *self.unseen)),
            ("answer", (self.answer, *self.wrong)),
        ):
            if not all(text.strip() for text in texts):
                raise ValueError(f"{self!r} has an empty {name}: there is nothing to ask or to say")
        wordings = (*self.wordings, *self.unseen)
        if len(set(wordings)) < len(wordings):
            twice = next(text for text in wordings if wordings.count(text) > 1)
            raise ValueError(
                f"the wording {twice!r} is given twice: each belongs to `prompt`, `rewordings` or "
                "`unseen`, once"
            )
        if self.answer in self.wrong:
            raise ValueError(f"the answer {self.answer!r} of {self.prompt!r} is among `wrong`")

    @property
    def wordings(self) -> tuple[str, ...]:
        """The prompts that edits may use."""
        return (self.prompt, *self.rewordings)

    def _given(self, name: str) -> str:
        return f"{getattr(self, name)!r}"


def require_questions(name: str, questions: Sequence[Question]) -> tuple[Question, ...]:
    """The questions as a tuple.

    Raises:
        ValueError: none, or something that is no `Question`.
    """
    if isinstance(questions, Question):
        return (questions,)
    found = tuple(questions)
    if not found:
        raise ValueError(f"`{name}` is empty: give at least one Question")
    other = next((item for item in found if not isinstance(item, Question)), None)
    if other is not None:
        raise ValueError(
            f"`{name}` must hold tl_bilinear.Question objects, got {type(other).__name__}"
        )
    return found


def whole_word(subject: str) -> re.Pattern[str]:
    """The subject where no letter or digit joins it: "on" is not in "upon"."""
    return re.compile(rf"(?<!\w){re.escape(subject)}(?!\w)")


def named(subject: str, text: str) -> bool:
    """Whether the subject stands in a text as a word."""
    return whole_word(subject).search(text) is not None
