"""How much of some directions to take out: one factor for all, or one for each.

What is taken out once may leave a little of an operation, and taken out twice harms the other one:
in between lies the least strength that forgets.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from tl_bilinear.recipes.arithmetic.cuts import Place
from tl_bilinear.recipes.arithmetic.edit import Edit, Problem
from tl_bilinear.recipes.arithmetic.outcome import Outcome, outcome_of
from tl_bilinear.unlearning import ContrastiveDirections

STRENGTHS = tuple(1 + step / 20 for step in range(21))  # 1 removes, 2 reverses
MOVES = (0.2, 0.1, 0.05)  # of one direction's factor, the large ones first
ROUNDS = 6  # over all directions, with each of the moves


def scaled_cuts(
    problem: Problem, place: Place, directions: ContrastiveDirections
) -> Iterator[tuple[Edit, Outcome]]:
    """For the first direction, the first two, ...: the least strength that forgets, if one does.

    By bisection: what forgets is taken to forget at greater strengths, too. Ends with the fewest
    directions that forget when they are taken out whole; where nothing forgets at all, with all of
    them reversed.
    """
    forgot = False
    for k in range(1, directions.k + 1):
        doses = _Doses(problem, place.layer, directions.truncate(k))
        whole, most = STRENGTHS[0], STRENGTHS[-1]
        if doses.outcome(most).forgets:
            forgot = True
            least = STRENGTHS[bisect_left(STRENGTHS, True, key=doses.forgets)]
            yield doses.edit(least), doses.outcome(least)
            if least == whole:
                return
        elif k == directions.k and not forgot:
            yield doses.edit(most), doses.outcome(most)


def scaled_singly(problem: Problem, start: Edit) -> tuple[Edit, Outcome]:
    """A factor of its own for every direction of an edit, from the edit's one factor for all.

    Coordinate search: one factor at a time goes up or down where that retains more and still
    forgets, or, as long as nothing forgets, where it forgets more. Never worse than the start.
    """
    ((layer, directions),) = start.outputs.items()

    def edit(factors: Sequence[float]) -> Edit:
        scale = torch.tensor(factors).to(directions.writers)[:, None]
        scaled = replace(directions, writers=directions.writers * scale)
        return Edit(directions.k, outputs={layer: scaled})

    best = [start.strength] * directions.k
    outcome = outcome_of(problem, edit(best))
    for move in MOVES:
        for _ in range(ROUNDS):
            before = best
            for place in range(directions.k):
                for sign in (1, -1):
                    tried = list(best)
                    tried[place] += sign * move
                    if tried[place] < 0:
                        continue
                    found = outcome_of(problem, edit(tried))
                    if _gain(found) > _gain(outcome):
                        best, outcome = tried, found
                        break
            if best == before:
                break
    return edit(best), outcome


def _gain(outcome: Outcome) -> tuple[bool, float, float]:
    """What a factor is moved for: all that is retained counts, unlike in `merit`."""
    return outcome.forgets, outcome.retain if outcome.forgets else 0.0, -outcome.forget


@dataclass(frozen=True, eq=False)
class _Doses:
    """Some directions of a layer's output, taken out by one factor or another."""

    problem: Problem
    layer: int
    directions: ContrastiveDirections
    tried: dict[float, Outcome] = field(default_factory=dict)

    def edit(self, strength: float) -> Edit:
        outputs = {self.layer: self.directions}
        return Edit(self.directions.k, outputs=outputs, strength=strength)

    def outcome(self, strength: float) -> Outcome:
        if strength not in self.tried:
            self.tried[strength] = outcome_of(self.problem, self.edit(strength))
        return self.tried[strength]

    def forgets(self, strength: float) -> bool:
        return self.outcome(strength).forgets


def within(problem: Problem, part: Bool[Tensor, "operation pair"]) -> Problem:
    """The same, with nothing known but these pairs: whatever is chosen there sees no others."""
    return replace(problem, known=problem.known & part)
