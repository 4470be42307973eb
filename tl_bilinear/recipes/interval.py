"""A mean over a few seeds, with Student's 95 % interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

# The 0.975 quantile of Student's t, by the number of values (one more than the degrees of freedom).
_QUANTILES = {
    2: 12.706,
    3: 4.303,
    4: 3.182,
    5: 2.776,
    6: 2.571,
    7: 2.447,
    8: 2.365,
    9: 2.306,
    10: 2.262,
}


@dataclass(frozen=True)
class Interval:
    """`mean` and half the width of its interval; printed as "1.2345 ± 0.0012"."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.half:.4f}"


def student_interval(values: Sequence[float]) -> Interval:
    """The mean of two to ten values, as if drawn from one normal distribution.

    Raises:
        ValueError: fewer or more values.
    """
    if len(values) not in _QUANTILES:
        raise ValueError(f"an interval is of 2 to 10 values, got {len(values)}: change the seeds")
    return Interval(fmean(values), _QUANTILES[len(values)] * stdev(values) / len(values) ** 0.5)
