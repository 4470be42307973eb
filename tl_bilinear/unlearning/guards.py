"""The second half of a fit: answers that crossed wordings still show, for little more KL.

What an edit leaves standing in wordings that nobody gave is found by asking in crossed ones
(`crossings`). Those that come too close to their answer join the demands, and the fit goes on from
where it is, harder where given ones would be left unmet; what other wordings gain must be more than
what text loses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.unlearning.answer_rows import known_rows, site_logits
from tl_bilinear.unlearning.crossings import crossed
from tl_bilinear.unlearning.demands import Demands, make_demands
from tl_bilinear.unlearning.descent import Coordinates, Fit, FitStep, is_met
from tl_bilinear.unlearning.layer_basis import WhitenedBasis
from tl_bilinear.unlearning.question import Question

ROUNDS = 3
"""What one round mends may show elsewhere; mostly the first is enough."""
STEPS = 12
"""Of a round at most."""
HARDER = 10
"""Demands give way by their softness times what they weigh. Where that leaves some unmet, it
is made so many times less: the penalty method (Nocedal and Wright, Numerical Optimization, 2006,
section 17.1)."""


@dataclass(frozen=True)
class Crossed:
    """What crossed wordings said of an edit."""

    n: int
    """Crossed wordings of the forget set."""
    known: tuple[float, float]
    """Share of them that say their answer: once the given wordings were met, and when crossed ones
    had been asked as well."""
    met: bool
    """Whether the demands in the given wordings were met then as well."""
    taken: bool
    """Whether they were, and it was worth its KL; else the edit is the one before."""

    @property
    def message(self) -> str:
        """What was found, and what came of it."""
        was, now = self.known
        if not was:
            return f"none of {self.n} crossed wordings says its answer"
        if self.taken:
            return f"{was:.1%} of {self.n} crossed wordings said their answer, and now {now:.1%}"
        why = "mending them costs more KL" if self.met else "mending them unmends given ones"
        return f"{was:.1%} of {self.n} crossed wordings say their answer: {why}"


def crossed_demands(
    host: AbstractHost,
    own: Demands,
    forget: Sequence[Question],
    retain: Sequence[Question],
    most: int,
    *,
    clearance: float,
    seed: int,
) -> Demands | None:
    """In crossed wordings forgotten answers are to lose by `clearance` logits, and retained ones
    that win to go on winning; None where the forget set has no crossed wordings.

    Args:
        own: the demands in the wordings of `forget` themselves, its questions first.
        most: crossed wordings per question.
    """
    mine, other = (crossed(each, most, seed, host.fits) for each in (forget, retain))
    if not mine:
        return None
    asked = [*mine.values(), *other.values()]
    demands = make_demands(
        host, asked[: len(mine)], asked[len(mine) :], torch.inf, floor=0.0, clearance=clearance
    )
    rows, of_forget = demands.rows, demands.forget[demands.rows.site_row]
    with torch.no_grad():
        wins = known_rows(site_logits(host, rows), rows)
    # Winning is what other wordings must not do, at the token that tells the fact: how far down
    # half a sentence goes is no demand, nor what spells out an answer that is given away.
    telling = _telling(own, len(forget))[list(mine)]
    telling = torch.cat([telling, torch.full((len(other),), -1)])
    tells = rows.site_index == telling[rows.question[rows.site_row]]
    margins = demands.margin_bound.clone()
    margins[of_forget & ~tells], margins[of_forget & tells] = -torch.inf, clearance
    losing = replace(demands, margin_bound=margins, pinned=torch.zeros_like(demands.pinned))
    return losing.select((demands.forget | wins).nonzero()[:, 0])


def _telling(demands: Demands, n_forget: int) -> Int[Tensor, " question"]:
    """Of each forgotten question the first token of its answer that shows it in any wording."""
    rows, shown = demands.rows, demands.pinned.cpu()
    first = torch.full((n_forget,), rows.n_sites)
    return first.scatter_reduce(
        0, rows.question[rows.site_row[shown]], rows.site_index[shown], "amin"
    )


def guard(
    fit: Fit,
    bases: Mapping[int, WhitenedBasis],
    x: Coordinates,
    step: FitStep,
    crossings: Demands,
    rank: int | None,
) -> tuple[Coordinates, FitStep, Crossed]:
    """Go on with a fit whose demands are met until crossed wordings are as well.

    What comes of it is taken only where the fit's own demands are still met and the share of
    crossed wordings that say their answer, plus the KL on text, is less than before: the sum that
    settings are tuned by (`tuning.CRITERION`).

    Args:
        step: how the fit stands at x.
    """
    begun = found = _Found.of(fit, bases, x, step, crossings)
    asked = torch.zeros(crossings.rows.n_rows, dtype=torch.bool)

    def gone_on() -> _Found:
        own = fit.demands
        fit.demands = own.joined(crossings.select(asked.nonzero()[:, 0]))
        try:
            moved, last = fit.descend(bases, found.x, STEPS, rank)
        finally:
            fit.demands = own
        return _Found.of(fit, bases, moved, fit.stand(bases, moved, last.kl), crossings)

    for _ in range(ROUNDS):
        if not found.known:
            break
        short = crossings.shortfall(found.logits) > 0
        asked |= crossings.rows.with_sites(short.cpu())
        found = gone_on()
    if not is_met(found.step) and fit.softness is not None:
        fit.softness /= HARDER
        found = gone_on()
    met = is_met(found.step)
    taken = met and found.score < begun.score
    crossed = Crossed(int(crossings.forget.sum()), (begun.known, found.known), met, taken)
    end = found if taken else begun
    return end.x, end.step, crossed


@dataclass(frozen=True, eq=False)
class _Found:
    x: Coordinates
    step: FitStep
    """On the fit's own demands."""
    logits: Float[Tensor, "site d_vocab"]
    """At the crossed wordings' sites."""
    known: float

    @classmethod
    def of(
        cls,
        fit: Fit,
        bases: Mapping[int, WhitenedBasis],
        x: Coordinates,
        step: FitStep,
        crossings: Demands,
    ) -> "_Found":
        logits = fit.logits(bases, x, crossings.rows)
        return cls(x, step, logits, crossings.known(logits)[0])

    @property
    def score(self) -> float:
        return self.known + 1 - self.step.retain_known + self.step.kl
