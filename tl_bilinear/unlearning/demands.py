"""What an edit must reach: forgotten answers at a level, retained ones no lower than a floor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
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

CLEARANCE = 5.0
RETAIN_CLEARANCE = 0.5
SHOWN = 1.0
"""Logits above its level from which a token shows its fact. One that stands lower spells an answer
out that its first tokens have given away, as it does for subjects that were never met."""


@dataclass(frozen=True, eq=False)
class Demands:
    """`sign * log-odds >= bound` and `sign * margin >= margin_bound` at every site.

    sign is -1 where something is to be forgotten. The margin counts because an answer that has
    come down to its level may still be the most likely one, and one above its floor may not be.
    """

    rows: AnswerRows
    forget: Bool[Tensor, " row"]
    bound: Float[Tensor, " site"]
    margin_bound: Float[Tensor, " site"]
    """Of one site of each forgotten row and of the retained sites that win now; else -inf."""
    pinned: Bool[Tensor, " site"]
    """Forgotten sites that show their fact: the ones that an edit is to move."""

    @property
    def sign(self) -> Float[Tensor, " site"]:
        return torch.where(self.forget[self.rows.site_row], -1.0, 1.0).to(self.bound)

    def select(self, rows: Int[Tensor, " kept"]) -> "Demands":
        """The demands of some rows."""
        sites = self.rows.sites_of([rows])
        return Demands(
            self.rows.select(rows),
            self.forget[rows],
            self.bound[sites],
            self.margin_bound[sites],
            self.pinned[sites],
        )

    def joined(self, other: "Demands") -> "Demands":
        """These and the others, whose questions are others."""
        pairs = (
            (getattr(self, name), getattr(other, name))
            for name in ("forget", "bound", "margin_bound", "pinned")
        )
        return Demands(self.rows.joined(other.rows), *(torch.cat(pair) for pair in pairs))

    def shortfall(self, logits: Float[Tensor, "site d_vocab"]) -> Float[Tensor, " site"]:
        """By how many logits each demand is missed; negative where it is met with room."""
        odds = site_log_odds(logits, self.rows.label)
        margins = site_margins(logits, self.rows.label)
        missed = self.bound.to(odds) - self.sign.to(odds) * odds
        return torch.maximum(missed, self.margin_bound.to(odds) - self.sign.to(odds) * margins)

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
            tokens. It binds the token of each answer that stands highest above it, and the others
            that stand more than `SHOWN` above.
        floor: log-odds that retained answers may fall to; those below it now are to stay.
        clearance: margin by which forgotten answers must lose; retained ones that are known must
            win by `RETAIN_CLEARANCE`.
    """
    rows = answer_rows(host, [*forget, *retain])
    mine = rows.question < len(forget)
    with torch.no_grad():
        logits = site_logits(host, rows)
    odds = site_log_odds(logits, rows.label)
    of_forget = mine[rows.site_row]
    if isinstance(level, Tensor):
        if level.shape != odds[of_forget].shape:
            raise ValueError(
                f"`target` has shape {tuple(level.shape)}, and the forgotten answers have "
                f"{int(of_forget.sum())} sites, those of wordings behind sentences of the texts "
                "included: give one number, or contexts=0 and one per site of answer_rows"
            )
        levels = level.to(odds)
    else:
        # Later tokens spell an answer out: what they say is language, not the fact.
        first = rows.site_index[of_forget] == 0
        levels = torch.where(first.to(odds.device), level, torch.inf).to(odds)
    # A retained token that wins by less is pushed up to it: rounding must not turn it over.
    wins = (site_margins(logits, rows.label) > 0).cpu() & ~of_forget
    margin_bound = torch.full((rows.n_sites,), -torch.inf).to(odds)
    margin_bound[wins] = RETAIN_CLEARANCE
    drop = torch.full((rows.n_sites,), -torch.inf).to(odds)
    drop[of_forget] = odds[of_forget] - levels
    pinned = drop > SHOWN
    for row in mine.nonzero()[:, 0].tolist():
        sites = (rows.site_row == row).nonzero()[:, 0]
        decisive = sites[drop[sites].argmax()]
        pinned[decisive], margin_bound[decisive] = True, clearance
    bound = odds.clamp_max(floor)
    bound[of_forget] = torch.where(pinned[of_forget], -levels, -torch.inf)
    return Demands(rows, mine, bound, margin_bound, pinned)
