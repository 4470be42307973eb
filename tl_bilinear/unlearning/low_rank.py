"""From a full edit to one of few terms per layer that meets the same demands.

The edit is cut in the metric (a singular value decomposition of its whitened coordinates, where
what is cut away costs least), and fitted again with one side of the factors held, by turns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tl_bilinear.unlearning.descent import CHEAPER, Coordinates, Fit, FitStep, Standing, is_met
from tl_bilinear.unlearning.layer_basis import WhitenedBasis

Factors = dict[int, tuple[Tensor, Tensor]]
"""Per layer [term, feature] and [term, writer], in the basis' own features and writers."""


def to_rank(
    fit: Fit,
    bases: Mapping[int, WhitenedBasis],
    x: Coordinates,
    rank: int,
    *,
    turns: int,
    steps: int = 3,
) -> tuple[Factors, FitStep]:
    """Factors of at most `rank` terms per layer, and how they do."""
    factors = {layer: _cut(bases[layer], x[layer], rank) for layer in bases}
    best: tuple[Factors, FitStep] | None = None
    at: Standing | None = None
    stalls = 0
    for turn in range(turns):
        side = turn % 2
        held = {layer: _hold(bases[layer], factors[layer], side) for layer in bases}
        whitened = {layer: each.whitened for layer, each in held.items()}
        start = {layer: each.start for layer, each in held.items()}
        stage = f"rank {rank}, {('readers', 'writers')[side]}"
        # The side that was held takes over the edit as it is, and with it how it stands.
        moved, at = fit.descend(whitened, start, stage, steps, at)
        step = at.step
        factors = {layer: held[layer].factors(moved[layer]) for layer in bases}
        fall = 1.0 if best is None else 1 - step.objective / best[1].objective
        stalls = 0 if fall > 0.02 else stalls + 1
        if fall > 0:
            best = factors, step
        # One side may be stuck where the other is not; what is met may still become cheaper.
        if (is_met(step) and turn and fall < CHEAPER) or stalls == 2:
            break
    assert best is not None
    return best


@dataclass(frozen=True, eq=False)
class _Held:
    """One layer with one factor held: a smaller basis, and where the edit stands in it."""

    whitened: WhitenedBasis
    start: Tensor
    factor: Tensor
    """What is held, orthonormal in the metric so that coordinates keep their meaning."""
    side: int

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        theta = self.whitened.theta(x)
        return (theta.mT, self.factor) if self.side == 0 else (self.factor, theta)


def _cut(whitened: WhitenedBasis, x: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    assert whitened.into_writers is not None, "paired features have no factors to cut"
    u, s, v = torch.linalg.svd(x.double(), full_matrices=False)
    kept = min(rank, len(s))
    left = (whitened.into_features @ u[:, :kept] * s[:kept]).mT
    return left, v[:kept] @ whitened.into_writers.mT


def _hold(whitened: WhitenedBasis, factors: tuple[Tensor, Tensor], side: int) -> _Held:
    """Side 0 leaves the readers free, side 1 the writers."""
    assert whitened.into_writers is not None
    free, fixed = factors[side], factors[1 - side]
    into = (whitened.into_features, whitened.into_writers)
    q, r = torch.linalg.qr(torch.linalg.solve(into[1 - side], fixed.mT))
    factor = q.mT @ into[1 - side].mT
    start = torch.linalg.solve(into[side], free.mT @ r.mT)
    basis, same = whitened.basis, torch.eye(len(factor)).to(factor)
    if side == 0:
        writers = factor if basis.writers is None else factor @ basis.writers.to(factor)
        whole = WhitenedBasis(replace(basis, writers=writers), into[0], same)
        return _Held(whole, start, factor, side)
    readers = factor if basis.readers is None else factor @ basis.readers.to(factor)
    whole = WhitenedBasis(replace(basis, readers=readers), same, into[1])
    return _Held(whole, start.mT, factor, side)
