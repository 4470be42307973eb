"""Numbers of a table's row: one method on several folds of one model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from tl_bilinear.recipes.interval import Interval, student_interval
from tl_bilinear.recipes.planted.cells import RELEARNING, Cell
from tl_bilinear.unlearning.measure import ModelScores

REGAINED = 0.9
"""Of the accuracy before the edit: from there what was forgotten counts as relearnt."""
LEAK_AT = 24
"""Steps of the lesson on one half, behind which the other half is asked."""

Number = Callable[[ModelScores], float | None]


@dataclass(frozen=True)
class Row:
    """The cells of one method, one per fold."""

    model: str
    method: str
    cells: tuple[Cell, ...]

    @property
    def failed(self) -> str:
        """Why a cell has no scores; empty where all have."""
        return next((cell.error for cell in self.cells if cell.scores is None), "")

    def values(self, number: Number) -> tuple[float, ...]:
        """One number of every fold that has it."""
        scores = [cell.scores for cell in self.cells if cell.scores is not None]
        return tuple(value for each in scores if (value := number(each)) is not None)

    def mean(self, number: Number) -> float:
        """Over the folds; NaN where none has it."""
        values = self.values(number)
        return fmean(values) if values else math.nan

    def interval(self, number: Number) -> Interval | None:
        """Student's 95 % interval over two or more folds."""
        values = self.values(number)
        return student_interval(values) if len(values) > 1 else None

    @property
    def largest_rank(self) -> int:
        """Of any layer's change of W_out, in any fold."""
        return max((rank for cell in self.cells for rank in cell.ranks), default=0)

    @property
    def most_terms(self) -> int:
        """The ranks of all layers together, in the fold where they are most."""
        return max((sum(cell.ranks) for cell in self.cells), default=0)

    @property
    def elsewhere(self) -> bool:
        """Whether other weights than W_out changed."""
        return any(cell.elsewhere for cell in self.cells)

    @property
    def seconds(self) -> float:
        """Of the slowest edit."""
        return max((cell.seconds for cell in self.cells), default=0.0)


def forget_accuracy(scores: ModelScores) -> float:
    return scores.forget.answers.accuracy


def forget_nll(scores: ModelScores) -> float:
    return scores.forget.answers.nll


def forget_unseen(scores: ModelScores) -> float | None:
    return None if scores.forget_unseen is None else scores.forget_unseen.answers.accuracy


def extraction(scores: ModelScores) -> float:
    return scores.forget.answers.extraction_strength


def retain_accuracy(scores: ModelScores) -> float:
    return scores.retain.answers.accuracy


def retain_unseen(scores: ModelScores) -> float | None:
    return None if scores.retain_unseen is None else scores.retain_unseen.answers.accuracy


def story_kl(scores: ModelScores) -> float:
    return scores.text.kl


def story_nll(scores: ModelScores) -> float:
    return scores.text.nll


def near_kl(scores: ModelScores) -> float | None:
    return None if scores.near is None or scores.near.text is None else scores.near.text.kl


def far_kl(scores: ModelScores) -> float | None:
    return None if scores.far is None or scores.far.text is None else scores.far.text.kl


def quality(scores: ModelScores) -> float | None:
    return scores.forget_quality


def probe(scores: ModelScores) -> float | None:
    """The linear probe of the last layer."""
    if scores.depth is None or not scores.depth.probes:
        return None
    return scores.depth.accuracy(1)[-1]


def quadratic_probe(scores: ModelScores) -> float | None:
    if scores.depth is None or not scores.depth.probes:
        return None
    return scores.depth.accuracy(2)[-1]


def four_bits(scores: ModelScores) -> float | None:
    return next((each.forget_accuracy for each in scores.rounding if each.bits == 4), None)


def leak(scores: ModelScores) -> float | None:
    """Accuracy on one half behind `LEAK_AT` steps on the other."""
    curve = next((each for each in scores.relearning if each.lesson == "half"), None)
    if curve is None:
        return None
    return curve.accuracy[curve.steps.index(LEAK_AT)]


def relearning_steps(scores: ModelScores, known: float = 1.0) -> float | None:
    """Steps on the same facts; infinite where they did not come back.

    Args:
        known: the accuracy before the edit.
    """
    curve = next((each for each in scores.relearning if each.lesson == "facts"), None)
    if curve is None:
        return None
    found = curve.steps_to(REGAINED * known)
    return math.inf if found is None else float(found)


def steps_text(steps: Sequence[float]) -> str:
    """Fold by fold; beyond the lesson's end as ">96"."""
    shown = [f">{RELEARNING.steps}" if math.isinf(each) else f"{each:.0f}" for each in steps]
    return shown[0] if len(set(shown)) == 1 else ", ".join(shown)
