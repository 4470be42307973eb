"""Settings of a method, chosen on one criterion at one budget."""

import copy
import time
from dataclasses import dataclass, replace
from typing import Any

from tl_bilinear.hosts import get_host
from tl_bilinear.unlearning.answer_rows import accuracy
from tl_bilinear.unlearning.methods.method import TRIALS, AbstractMethod, Problem
from tl_bilinear.unlearning.metrics import score_texts
from tl_bilinear.unlearning.passes import Passes, count_passes

CRITERION = (
    "forget accuracy + (1 - retained accuracy) + KL per token: the edit's wordings, and the texts "
    f"that the edit may use; the least of at most {TRIALS} trials is taken, the first of equal ones"
)


@dataclass(frozen=True)
class Trial:
    """One setting of a method, tried on a copy of the model."""

    settings: tuple[tuple[str, str], ...]
    forget_accuracy: float | None
    retain_accuracy: float | None
    kl: float | None
    error: str
    """Why it failed; empty where it did not."""
    passes: Passes
    """Of the copy that was edited and of the original that it was compared with."""
    seconds: float

    @property
    def score(self) -> float:
        """The criterion; infinite where the trial failed."""
        if self.forget_accuracy is None or self.retain_accuracy is None or self.kl is None:
            return float("inf")
        return self.forget_accuracy + 1 - self.retain_accuracy + self.kl


def tune(
    method: type[AbstractMethod],
    model: Any,
    problem: Problem,
    n_trials: int = TRIALS,
    **fixed: Any,
) -> tuple[AbstractMethod, tuple[Trial, ...]]:
    """Try a method's candidates and return the best with the record of all trials.

    Args:
        n_trials: of the candidates, the first so many are tried.
        fixed: settings that replace the candidates' own.

    Raises:
        ValueError: every candidate failed; the first one's reason.
    """
    candidates = [
        _with(candidate, fixed) for candidate in method.candidates(get_host(model))[:n_trials]
    ]
    trials = tuple(run_trial(candidate, model, problem) for candidate in candidates)
    best = min(range(len(trials)), key=lambda place: trials[place].score)
    if trials[best].score == float("inf"):
        raise ValueError(f"{method.name}: no setting could be used; the first: {trials[0].error}")
    return candidates[best], trials


def run_trial(candidate: AbstractMethod, model: Any, problem: Problem) -> Trial:
    """Edit a copy of the model, and score it; a failure is recorded, not raised."""
    copied = copy.deepcopy(model)
    began = time.perf_counter()
    forget = retain = kl = None
    error = ""
    with count_passes(copied) as passes, count_passes(problem.original) as reference:
        try:
            candidate.edit_(copied, problem)
        except ValueError as failure:
            error = str(failure)
    seconds = time.perf_counter() - began
    if not error:
        forget, retain = accuracy(copied, problem.forget), accuracy(copied, problem.retain)
        kl = score_texts(copied, problem.original, problem.texts).kl
        if kl != kl:
            error, forget = "the edited model's output is not a number", None
    return Trial(described(candidate), forget, retain, kl, error, passes + reference, seconds)


def described(method: AbstractMethod) -> tuple[tuple[str, str], ...]:
    """Its settings as text."""
    return tuple((name, str(value)) for name, value in method.settings)


def _with(candidate: AbstractMethod, fixed: dict[str, Any]) -> AbstractMethod:
    known = {name for name, _ in candidate.settings}
    return replace(candidate, **{name: each for name, each in fixed.items() if name in known})
