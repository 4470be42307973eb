"""How much to follow: a number of nodes, or a share of the sum of |shares|.

Both become a threshold on |share|, which is searched for over sweeps: whatever reaches it is a
node. A sweep whose threshold is lower follows more.
"""

import math
from dataclasses import dataclass
from typing import Any

from tl_bilinear.circuits.readers import Ledger
from tl_bilinear.circuits.sweep import Sweep

DEFAULT_NODES = 100
SWEEPS = 14
"""At the most, in search of a threshold."""
LARGER = 3
"""Budgets beyond the one asked for that are measured, each at half the threshold before."""
ALL = 0.97
"""A budget that keeps this share is taken for the largest."""


@dataclass(frozen=True)
class Budget:
    """Either a number of nodes or a kept share."""

    max_nodes: int | None
    kept: float | None

    @classmethod
    def of(cls, max_nodes: int | None, kept: float | None) -> "Budget":
        """A checked budget; 100 nodes where nothing is asked for.

        Raises:
            ValueError: both, fewer than one node, or a share outside of (0, 1].
        """
        if max_nodes is not None and kept is not None:
            raise ValueError("give `max_nodes` or `kept`, not both")
        if max_nodes is not None and max_nodes < 1:
            raise ValueError(f"`max_nodes` must be at least 1, got {max_nodes}")
        if kept is not None and not 0 < kept <= 1:
            raise ValueError(f"`kept` is a share in (0, 1], got {kept}")
        if max_nodes is None and kept is None:
            max_nodes = DEFAULT_NODES
        return cls(max_nodes, kept)


@dataclass(frozen=True)
class Point:
    """What one threshold gives."""

    threshold: float
    nodes: int
    """Modes and head edges."""
    kept: float
    """Part of the sum of |shares| over sources that is no remainder's."""
    error: float
    """|target - kept| / |target|."""


@dataclass(frozen=True)
class Found:
    """The sweep that a budget allows, and what others gave."""

    ledger: Ledger
    settings: dict[str, Any]


def measure(sweep: Sweep, threshold: float) -> Point:
    """One sweep without edges."""
    ledger = sweep.run(threshold, merged=True)
    kept, gone, signed = ledger.sums()
    target = abs(sweep.ground.target)
    return Point(
        threshold=threshold,
        nodes=ledger.chosen,
        kept=kept / (kept + gone) if kept + gone else 1.0,
        error=abs(signed) / target if target else math.nan,
    )


def search(sweep: Sweep, budget: Budget, larger: int | None = LARGER) -> Found:
    """The sweep of the budget: the lowest threshold that keeps to the nodes, or the highest that
    keeps the share.

    Args:
        larger: how many budgets beyond it are measured as well; None goes on to the largest.

    Raises:
        ValueError: fewer than none.
    """
    if larger is not None and larger < 0:
        raise ValueError(f"`larger_budgets` is {larger}: give 0 or more, or None for all")
    points: dict[float, Point] = {}

    def at(threshold: float) -> Point:
        if threshold not in points:
            points[threshold] = measure(sweep, threshold)
        return points[threshold]

    def enough(point: Point) -> bool:
        """Whether a lower threshold is too low (of nodes) or not needed (of a share)."""
        if budget.max_nodes is not None:
            return point.nodes > budget.max_nodes
        return point.kept >= (budget.kept or 1.0)

    scale = sweep.ground.scale
    high, low = 2 * scale, scale
    while not enough(at(low)) and low:
        high, low = low, (low / 4 if low > 1e-10 * scale else 0.0)
    for _ in range(SWEEPS):
        if not enough(at(low)) or not low or _near(budget, at(high), at(low)):
            break
        middle = math.sqrt(high * low)
        high, low = (high, middle) if enough(at(middle)) else (middle, low)
    # A kept share is reached at `low`, a number of nodes is kept to at `high`.
    by_share = budget.max_nodes is None
    threshold = low if by_share or not enough(at(low)) else high
    for step in range(1, 64 if larger is None else larger + 1):
        if at(threshold / 2**step).kept >= ALL and larger is None:
            break
    ledger = sweep.run(threshold)
    curve = sorted((p for p in points.values() if p.threshold <= threshold), key=_nodes)
    return Found(
        ledger=ledger,
        settings={
            "budget": f"kept share {budget.kept}" if by_share else f"{budget.max_nodes} nodes",
            "threshold": threshold,
            "nodes": ledger.chosen,
            # [nodes, kept share, |target - kept| / |target|], this budget first
            "budget_curve": [[p.nodes, p.kept, p.error] for p in curve],
        },
    )


def _nodes(point: Point) -> int:
    return point.nodes


def _near(budget: Budget, high: Point, low: Point) -> bool:
    if budget.max_nodes is not None:
        return high.nodes >= 0.85 * budget.max_nodes or high.threshold < 1.02 * low.threshold
    return high.threshold < 1.02 * low.threshold or low.nodes - high.nodes <= 1
