"""How beta falls from 1 to 0 while a gate is annealed.

Linear over the first 30 % of the steps is that of 2410.08417, appendix J. The authors' code
(tdooms/bilinear-interp) also has exponential, logistic and smootherstep decays; the logistic is
here scaled to reach both ends, and the smootherstep is the usual polynomial.
"""

import math
from collections.abc import Callable

LOGISTIC_STEEPNESS = 4.0
EXPONENTIAL_RATE = 1.05


def _linear(left: float) -> float:
    return left


def _cosine(left: float) -> float:
    return 0.5 * (1 - math.cos(math.pi * left))


def _exponential(left: float) -> float:
    return min(left * math.exp(EXPONENTIAL_RATE * (1 - left)), 1.0)


def _logistic(left: float) -> float:
    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    low, high = sigmoid(-LOGISTIC_STEEPNESS), sigmoid(LOGISTIC_STEEPNESS)
    return (sigmoid(LOGISTIC_STEEPNESS * (2 * left - 1)) - low) / (high - low)


def _smootherstep(left: float) -> float:
    return left**3 * (left * (6 * left - 15) + 10)


def _abrupt(left: float) -> float:
    return 0.0


SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "exponential": _exponential,
    "logistic": _logistic,
    "smootherstep": _smootherstep,
    "abrupt": _abrupt,
}
"""From the share of the annealing that is left (1 to 0) to beta."""


def beta_at(step: int, n_steps: int, fraction: float = 0.3, schedule: str = "linear") -> float:
    """Return beta at `step`: from 1 to 0 over the first `fraction * n_steps` steps, then 0.

    Args:
        schedule: "linear"; "cosine" (half a cosine); "exponential", x exp(1.05 (1 - x)) with x the
            share that is left; "logistic"; "smootherstep"; or "abrupt", which is 0 at once.

    Raises:
        ValueError: unless `n_steps` is positive, `step` at least 0, `fraction` in (0, 1] and the
            schedule known.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"`schedule` is {schedule!r}: expected one of {', '.join(SCHEDULES)}.")
    if n_steps <= 0 or step < 0 or not 0 < fraction <= 1:
        raise ValueError(
            f"got step {step} of {n_steps} and fraction {fraction}: expected a step from 0, "
            "a positive number of steps and a fraction above 0 and up to 1."
        )
    left = 1 - min(step / (fraction * n_steps), 1.0)
    return SCHEDULES[schedule](left) if left > 0 else 0.0
