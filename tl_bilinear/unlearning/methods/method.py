"""What a way to unlearn is asked for, and what it must offer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.unlearning.question import Question

Kind = Literal["none", "masking", "removal"]
TRIALS = 4
"""Settings that every method may try: its tuning budget."""


@dataclass(frozen=True)
class Problem:
    """What is to be forgotten, what is to be kept, and the text on which a model must not change.

    Methods see the edit's wordings (`Question.wordings`) alone.
    """

    forget: tuple[Question, ...]
    retain: tuple[Question, ...]
    texts: tuple[str, ...]
    seed: int = 0
    """Of whatever a method draws."""
    original: Any = field(default=None, repr=False)
    """A copy of the unedited model, which methods that compare with it read and never change."""


@dataclass(frozen=True)
class AbstractMethod(ABC):
    """A way to unlearn with its settings, which are the dataclass's fields."""

    name: ClassVar[str]
    """In the registry."""
    kind: ClassVar[Kind]
    """Removal, or masking: an edit that the saved files can be freed of."""
    source: ClassVar[str]
    """Paper and section."""

    @classmethod
    @abstractmethod
    def candidates(cls, host: AbstractHost) -> Sequence["AbstractMethod"]:
        """The settings to try on a model, at most `TRIALS`, in order."""

    @abstractmethod
    def edit_(self, model: Any, problem: Problem) -> str | None:
        """Edit the model's weights in place; what a reader should know of how that went, if any.

        Raises:
            ValueError: these settings cannot be used on this model, or diverged.
        """

    @property
    def settings(self) -> tuple[tuple[str, Any], ...]:
        """(name, value) of every setting."""
        return tuple((each.name, getattr(self, each.name)) for each in fields(self))
