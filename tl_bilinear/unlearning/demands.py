"""What an edit must reach: forgotten answers at a level, retained ones no lower than a floor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.unlearning.answer_rows import (
    AnswerRows,
    answer_rows,
    known_rows,
    site_log_odds,
    site_logits,
    site_margins,
)
from tl_bilinear.unlearning.question import Question


@dataclass(frozen=True, eq=False)
class Demands:
    """`sign * log-odds >= bound` at every site; sign is -1 where something is to be forgotten."""

    rows: AnswerRows
    forget: Bool[Tensor, " row"]
    bound: Float[Tensor, " site"]
    decisive: Bool[Tensor, " site"]
    """The site of each forgotten row that must not stay the most likely token."""
    clearance: float
    """By how much (margin in logits) the decisive site must lose, and retained ones win."""

    @property
    def sign(self) -> Float[Tensor, " site"]:
        return torch.where(self.forget[self.rows.site_row], -1.0, 1.0).to(self.bound)

    def shortfall(self, logits: Float[Tensor, "site d_vocab"]) -> Float[Tensor, " site"]:
        """By how much each demand is missed, in logits; negative where it is met with room.

        A decisive site's margin counts too: an answer that has come down to its level but is
        still the most likely one is still known.
        """
        odds = site_log_odds(logits, self.rows.label)
        missed = self.bound - self.sign * odds
        margins = site_margins(logits, self.rows.label)
        still = margins + self.clearance
        return torch.where(self.decisive, torch.maximum(missed, still), missed)

    def known(self, logits: Float[Tensor, "site d_vocab"]) -> tuple[float, float]:
        """Accuracy on the forgotten rows and on the retained ones."""
        known = known_rows(logits, self.rows).double()
        return float(known[self.forget].mean()), float(known[~self.forget].mean())


def make_demands(
    host: AbstractHost,
    forget: Sequence[Question],
    retain: Sequence[Question],
    level: Float[Tensor, " site"] | float,
    *,
    floor: float,
    clearance: float,
) -> Demands:
    """The demands for the edit's wordings of these questions.

    Args:
        level: log-odds that forgotten answers are to come down to, per site or for all first
            tokens; an answer that is below its level already is left there.
        floor: log-odds that retained answers may fall to; those below it now are to stay.
    """
    rows = answer_rows(host, [*forget, *retain])
    mine = rows.question < len(forget)
    with torch.no_grad():
        logits = site_logits(host, rows)
    odds = site_log_odds(logits, rows.label)
    of_forget = mine[rows.site_row]
    if isinstance(level, Tensor):
        levels = level.to(odds)
    else:
        # Later tokens spell an answer out: what they say is language, not the fact.
        first = rows.site_index[of_forget] == 0
        levels = torch.where(first.to(odds.device), level, odds[of_forget.to(odds.device)])
    bound = odds.clamp_max(floor)
    bound[of_forget] = -torch.minimum(levels, odds[of_forget])
    decisive = torch.zeros(rows.n_sites, dtype=torch.bool)
    drop = torch.full((rows.n_sites,), -torch.inf).to(odds)
    drop[of_forget] = odds[of_forget] - levels
    for row in mine.nonzero()[:, 0].tolist():
        sites = (rows.site_row == row).nonzero()[:, 0]
        decisive[sites[drop[sites].argmax()]] = True
    return Demands(rows, mine, bound, decisive, clearance)
