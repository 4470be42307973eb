"""Damped, re-linearised Gauss-Newton: the cheapest edit that meets demands on log-odds.

Every step linearises the demands where the edit stands and takes the smallest *whole* edit (not
the smallest step) that meets them, so that nothing of earlier linearisations stays behind:

    minimise |x|^2 / 2 + sum_s max(0, shortfall_s(x))^2 / (2 softness)

with |x|^2 / 2 the second-order KL on general text. Steps are damped towards the last edit and
taken only where this sum falls and the measured KL stays within its limit (Levenberg-Marquardt
with a trust region; the dual is `least_change`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.unlearning.answer_rows import AnswerRows, site_logits
from tl_bilinear.unlearning.demands import Demands
from tl_bilinear.unlearning.layer_basis import WhitenedBasis, WhitenedGradients
from tl_bilinear.unlearning.least_change import least_change
from tl_bilinear.unlearning.low_rank import TangentGradients, cut_all
from tl_bilinear.unlearning.site_gradients import Change, adding, log_odds_gradients
from tl_bilinear.unlearning.text_metric import TextKL

Coordinates = dict[int, Tensor]

TOLERANCE = 0.25
"""Logits by which a demand may be missed and still count as met."""
MOST_DAMPING = 1e4
CHEAPER = 0.15
"""An edit that meets its demands is fitted on while a step takes this share off its cost."""
TRUSTED = 0.75
"""Where a step takes this share of what it foresaw off the objective, the next is damped less."""
STRIDE = 2.0
"""Logits that a step asks of a demand at most. The way down is curved, and whoever asks for all at
once ends in dearer edits: of the strides 1, 2, 4, 6 and none, 2 gave the lowest cost or close to it
in the fewest steps."""
CLEARLY_CHEAP = 0.01
"""Of the limit on KL: what is foreseen to cost less than this share of it is measured on text at
the end only. The forecast is of second order; a hundredfold leaves it room."""
SLACK = 1.5
"""Demands that are met with more room than this many logits have no part in a step."""


@dataclass(frozen=True)
class FitStep:
    """Where an edit stood after a step, or what a refused one would have given."""

    forget_known: float
    """Accuracy on the forgotten rows, in the edit's wordings."""
    retain_known: float
    forget_shortfall: float
    """The largest number of logits by which a forgotten site misses its level."""
    retain_shortfall: float
    kl: float
    """On a third of the texts of the fit, in nats per token; nan where these were not read: what
    was refused before, and what is foreseen to cost a hundredth of the limit."""
    cost: float
    """|x|^2 / 2: what the metric foresees for it."""
    objective: float
    damping: float
    accepted: bool


@dataclass(frozen=True, eq=False)
class Standing:
    """How an edit stands: what a step came to, and what every demand misses there."""

    step: FitStep
    short: Tensor
    """Per site, in logits."""


@dataclass(eq=False)
class Fit:
    """An edit being fitted: what it must reach, what it costs, and what was tried."""

    host: AbstractHost
    demands: Demands
    kl: TextKL
    kl_limit: float
    progress: Callable[[FitStep], None] | None = None
    softness: float | None = None
    damping: float = 0.0
    """Where the next step begins: at what the last one needed, or below."""
    history: list[FitStep] = field(default_factory=list)

    def descend(
        self,
        bases: Mapping[int, WhitenedBasis],
        x: Coordinates,
        max_steps: int,
        rank: int | None = None,
    ) -> tuple[Coordinates, FitStep]:
        """Steps until the demands are met and the cost no longer falls, or nothing helps.

        Args:
            rank: of every layer's edit at most; any by default. From zero the first step is the
                full one, cut; later ones keep to the edits of this rank.
        """
        at = self._stand(bases, x, self.damping)
        for _ in range(max_steps):
            system = self._linearise(bases, x, at.short, rank)
            at = self._weighed(at)  # the first linearisation says what a missed demand counts
            tried = _dampings(self.damping)
            for damping in tried:
                moved, foreseen = system.step(x, damping)
                there = self._stand(bases, moved, damping)
                better = there.step.objective < at.step.objective
                if better and there.step.cost > CLEARLY_CHEAP * self.kl_limit:
                    at = self._read_texts(bases, x, at)
                    there = self._read_texts(bases, moved, there)
                    better = there.step.kl <= max(self.kl_limit, at.step.kl)
                self._note(replace(there.step, accepted=better))
                if better:
                    break
            else:
                break
            small = there.step.objective > (1 - CHEAPER) * at.step.objective
            fell = at.step.objective - there.step.objective
            bolder = damping == tried[0] and fell > TRUSTED * (at.step.objective - foreseen)
            self.damping = damping / 2 if bolder else damping
            x, at = moved, there
            if is_met(at.step) and small:
                break
        return x, self._read_texts(bases, x, at).step

    def stand(self, bases: Mapping[int, WhitenedBasis], x: Coordinates, kl: float) -> FitStep:
        """How an edit of known KL stands; one pass of the rows."""
        return replace(self._stand(bases, x, self.damping).step, kl=kl)

    @torch.no_grad()
    def logits(
        self, bases: Mapping[int, WhitenedBasis], x: Coordinates, rows: AnswerRows
    ) -> Float[Tensor, "site d_vocab"]:
        """What the edited model says at the sites of some rows."""
        with adding(self.host, self._changes(bases, x)):
            return site_logits(self.host, rows).double()

    def _changes(self, bases: Mapping[int, WhitenedBasis], x: Mapping[int, Tensor]) -> list[Change]:
        return [(bases[layer].basis, bases[layer].theta(x[layer])) for layer in bases]

    def _stand(
        self, bases: Mapping[int, WhitenedBasis], x: Coordinates, damping: float
    ) -> Standing:
        """One pass of the rows; the texts are not read."""
        logits = self.logits(bases, x, self.demands.rows)
        short = self.demands.shortfall(logits)
        mine = self.demands.forget[self.demands.rows.site_row].to(short.device)
        forget_known, retain_known = self.demands.known(logits)
        step = FitStep(
            forget_known=forget_known,
            retain_known=retain_known,
            forget_shortfall=float(short[mine].max()),
            retain_shortfall=float(short[~mine].max()),
            kl=math.nan,
            cost=sum(float(value.double().square().sum()) for value in x.values()) / 2,
            objective=math.nan,
            damping=damping,
            accepted=True,
        )
        return self._weighed(Standing(step, short))

    def _weighed(self, at: Standing) -> Standing:
        if self.softness is None:
            return at
        missed = float(at.short.clamp_min(0).square().sum()) / (2 * self.softness)
        return Standing(replace(at.step, objective=at.step.cost + missed), at.short)

    def _read_texts(
        self, bases: Mapping[int, WhitenedBasis], x: Coordinates, at: Standing
    ) -> Standing:
        """One pass of the texts, unless they have been read."""
        if not math.isnan(at.step.kl):
            return at
        return Standing(replace(at.step, kl=self.kl(self._changes(bases, x))), at.short)

    def _note(self, step: FitStep) -> None:
        self.history.append(step)
        if self.progress is not None:
            self.progress(step)

    def _linearise(
        self,
        bases: Mapping[int, WhitenedBasis],
        x: Coordinates,
        short: Tensor,
        rank: int | None,
    ) -> "_System":
        near = short > -SLACK
        near[short.argmax()] = True
        rows = self.demands.rows.of_sites(near.cpu())
        _, found = log_odds_gradients(self.host, rows, self._changes(bases, x))
        jacobians: dict[int, WhitenedGradients | TangentGradients] = {}
        for layer in bases:
            whole = bases[layer].read(found[layer])
            # From zero every direction is open.
            if rank is None or not x[layer].any():
                jacobians[layer] = whole
            else:
                jacobians[layer] = TangentGradients.at(x[layer], rank, whole)
        kernel = sum(each.kernel().double() for each in jacobians.values())
        assert isinstance(kernel, Tensor)
        if self.softness is None:
            # Weights of the dual are logits missed over softness: small beside the kernel.
            self.softness = 1e-3 * float(kernel.diagonal().mean())
        sign = self.demands.sign.to(short)[near]
        signed = kernel * sign * sign[:, None]
        return _System(jacobians, signed, short[near], sign, self.softness, rank)


def is_met(step: FitStep) -> bool:
    """Forgotten down to the level, retained above the floor."""
    return max(step.forget_shortfall, step.retain_shortfall) <= TOLERANCE


@dataclass(frozen=True, eq=False)
class _System:
    jacobians: Mapping[int, WhitenedGradients | TangentGradients]
    kernel: Tensor
    short: Tensor
    sign: Tensor
    softness: float
    rank: int | None

    def step(self, x: Coordinates, damping: float) -> tuple[Coordinates, float]:
        """The smallest whole edit that meets the linearised demands, held near the last one.

        Also the objective that it would have were the demands linear.
        """
        gone = self.sign * sum(self.jacobians[layer].push(x[layer]).double() for layer in x)
        kept = damping / (1 + damping)
        asked = self.short.clamp_max(STRIDE)
        weights = least_change(
            self.kernel / (1 + damping), asked + (1 - kept) * gone, self.softness
        )
        signed = self.sign * weights / (1 + damping)
        moved = {
            layer: self.jacobians[layer].pull_back(signed).double() + kept * x[layer] for layer in x
        }
        cost = sum(float(value.square().sum()) for value in moved.values()) / 2
        missed = self.short - asked + self.softness * weights
        foreseen = cost + float(missed.square().sum()) / (2 * self.softness)
        return moved if self.rank is None else cut_all(moved, self.rank), foreseen


def _dampings(last: float) -> list[float]:
    found = [last if last >= 0.1 else 0.0]
    while (following := max(0.5, 3 * found[-1])) <= MOST_DAMPING:
        found.append(following)
    return found
