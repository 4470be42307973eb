"""How much of some directions to take out: one factor for all, between removed and reversed.

What is taken out once may leave a little of an operation, and taken out twice harms the other one:
in between lies the least strength that forgets.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import asdict, replace

from jaxtyping import Bool
from torch import Tensor

from tl_bilinear.recipes.arithmetic.cuts import Place
from tl_bilinear.recipes.arithmetic.edit import Edit, Problem
from tl_bilinear.recipes.arithmetic.outcome import Outcome
from tl_bilinear.unlearning import ContrastiveDirections

STRENGTHS = tuple(1 + tenth / 10 for tenth in range(11))  # 1 removes, 2 reverses


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
        some = {place.layer: directions.truncate(k)}
        tried: dict[float, Outcome] = {}

        def at(strength: float, some=some, tried=tried) -> Outcome:
            if strength not in tried:
                scores = problem.accuracies(Edit(outputs=some, strength=strength))
                tried[strength] = Outcome(**asdict(scores), size=some[place.layer].k)
            return tried[strength]

        if not at(STRENGTHS[-1]).forgets:
            if k == directions.k and not forgot:
                yield Edit(k, outputs=some, strength=STRENGTHS[-1]), at(STRENGTHS[-1])
            continue
        forgot = True
        least = STRENGTHS[bisect_left(STRENGTHS, True, key=lambda each: at(each).forgets)]
        yield Edit(k, outputs=some, strength=least), at(least)
        if least == STRENGTHS[0]:
            return


def within(problem: Problem, part: Bool[Tensor, "operation pair"]) -> Problem:
    """The same, with nothing known but these pairs: whatever is chosen there sees no others."""
    return replace(problem, known=problem.known & part)
