"""What an edit came to, and which of several is the best."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from tl_bilinear.recipes.arithmetic.cuts import LARGEST
from tl_bilinear.recipes.arithmetic.edit import NOTHING, Edit, Problem

KEPT = 0.99  # retained accuracy beyond which fewer modes count for more


@dataclass(frozen=True)
class Outcome:
    """Accuracies at the smallest edit that forgets, or at the last one where none does."""

    forget: float
    retain: float
    retain_trained: float
    size: float
    """Modes, directions or units; of the solver, the rank of the edit."""
    where: str = ""

    @property
    def forgets(self) -> bool:
        return self.forget <= LARGEST


def outcome_of(problem: Problem, edit: Edit) -> Outcome:
    """What an edit comes to, by all known pairs."""
    return Outcome(**asdict(problem.accuracies(edit)), size=edit.size)


def first_that_forgets(problem: Problem, edits: Iterable[Edit]) -> tuple[Edit, Outcome]:
    """The first edit whose forget accuracy is at most `LARGEST`, or the last one."""
    edit, outcome = NOTHING, Outcome(1.0, 1.0, 1.0, 0)
    for edit in edits:
        outcome = outcome_of(problem, edit)
        if outcome.forgets:
            break
    return edit, outcome


def merit(outcome: Outcome) -> tuple[bool, float, float]:
    """Forgets at all; retains, where `KEPT` is enough; takes little out."""
    return outcome.forgets, min(outcome.retain, KEPT), -outcome.size
