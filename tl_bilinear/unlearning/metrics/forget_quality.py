"""Forget quality: whether an edited model's truth ratios could be those of a gold model.

The p-value of the two-sample Kolmogorov-Smirnov test between the truth ratios of the edited model
and of one that was trained without the forget set (TOFU, 2401.06121, section 3.2; open-unlearning
src/evals/metrics/utils.py, which calls scipy's `ks_2samp`). Near 1 they cannot be told apart; near
0 they can. Without a gold model there is no forget quality.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

# Above this size the exact distribution gives way to Kolmogorov's limit.
EXACT = 1000


def forget_quality(ratios: Float[Tensor, " a"], gold: Float[Tensor, " b"]) -> float:
    """The p-value for truth ratios of an edited and of a gold model.

    Raises:
        ValueError: no ratio on one side.
    """
    return kolmogorov_smirnov(ratios, gold)[1]


def kolmogorov_smirnov(
    first: Float[Tensor, " a"], second: Float[Tensor, " b"]
) -> tuple[float, float]:
    """The largest distance between two empirical distributions, and its two-sided p-value.

    Exact up to 1,000 values a side, O(a b): of all orders in which the values may fall, equally
    likely if they have one distribution, the share with a distance at least as large (ties are
    counted as scipy counts them). Kolmogorov's limit with Stephens' correction beyond. SciPy's own
    `ks_2samp` leaves the exact distribution, with a warning, where rounding takes the p-value past
    1, as for samples that differ in one of five values: where a good edit stands.

    Raises:
        ValueError: no value on one side, or one that is not finite.
    """
    a, b = len(first), len(second)
    if not a or not b:
        raise ValueError(f"two samples are needed, got {a} and {b} values")
    x, y = first.detach().cpu().double(), second.detach().cpu().double()
    values = torch.cat([x, y])
    if not torch.isfinite(values).all():
        raise ValueError("a sample has values that are not finite: the models diverged")
    below = torch.searchsorted(x.sort().values, values, right=True)
    below_too = torch.searchsorted(y.sort().values, values, right=True)
    # In units of 1 / (a b): integers, so that equal distances compare as equal.
    distance = int((below * b - below_too * a).abs().max())
    if max(a, b) <= EXACT:
        return distance / (a * b), _exact(distance, a, b)
    return distance / (a * b), _limit(distance / (a * b), a, b)


def _exact(distance: int, a: int, b: int) -> float:
    """The chance that a random path from (0, 0) to (a, b) ever reaches |i b - j a| >= distance."""
    if distance == 0:
        return 1.0
    after = [0.0] * (b + 1)  # of paths through (i + 1, j); outside the rectangle none passes
    for i in range(a, -1, -1):
        here = [0.0] * (b + 1)
        for j in range(b, -1, -1):
            if abs(i * b - j * a) >= distance:
                here[j] = 1.0
            elif i < a or j < b:
                left = (a - i) * after[j] + ((b - j) * here[j + 1] if j < b else 0.0)
                here[j] = left / (a - i + b - j)
        after = here
    return after[0]


def _limit(distance: float, a: int, b: int) -> float:
    root = math.sqrt(a * b / (a + b))
    z = (root + 0.12 + 0.11 / root) * distance
    if z < 0.2:
        return 1.0
    terms = (2 * (-1) ** (k - 1) * math.exp(-2 * (k * z) ** 2) for k in range(1, 101))
    return min(max(sum(terms), 0.0), 1.0)
