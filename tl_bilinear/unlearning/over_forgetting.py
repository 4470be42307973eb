"""Signs that an edit went below what a model that never learnt would say.

Who compares the edited model with others sees them: an answer pushed below its alternatives says
what was removed as surely as the answer itself.
"""

from collections.abc import Sequence

from tl_bilinear.unlearning.measure import ModelScores

NLL_ABOVE = 1.2
"""Times gold's: beyond it the answer is suppressed (issue: within 20 % of gold)."""
BELOW = 0.05
"""Accuracy and probe accuracy this far below gold's count."""
SUPPRESSED = 0.8
"""Of the forgotten answers less likely than their wrong ones; half would be by chance."""


def over_forgetting(scores: ModelScores, gold: ModelScores | None) -> tuple[str, ...]:
    """One sentence for every sign; none where nothing was found."""
    found = []
    ratios = scores.forget.truth_ratios
    share = sum(r > 1 for r in ratios) / len(ratios) if ratios else 0.0
    if gold is None:
        if share > SUPPRESSED:
            found.append(
                f"{share:.0%} of the forgotten answers are less likely than the wrong ones; about "
                "half would be in a model that never learnt them"
            )
        return tuple(found)
    ours, theirs = scores.forget.answers, gold.forget.answers
    if ours.nll > NLL_ABOVE * theirs.nll:
        found.append(
            f"NLL of the forgotten answers is {ours.nll:.2f}, gold's {theirs.nll:.2f}: more than "
            f"{NLL_ABOVE - 1:.0%} above"
        )
    if ours.accuracy < theirs.accuracy - BELOW:
        found.append(f"forget accuracy is {ours.accuracy:.3f}, gold's {theirs.accuracy:.3f}")
    if ratios and gold.forget.truth_ratios:
        other = sum(r > 1 for r in gold.forget.truth_ratios) / len(gold.forget.truth_ratios)
        if share > SUPPRESSED and share > other + BELOW:
            found.append(
                f"{share:.0%} of the forgotten answers are less likely than the wrong ones, in "
                f"gold {other:.0%}"
            )
    if scores.depth and gold.depth and scores.depth.probes and gold.depth.probes:
        probe, reference = scores.depth.accuracy(1)[-1], gold.depth.accuracy(1)[-1]
        if probe < reference - BELOW:
            found.append(
                f"a linear probe of the last layer finds {probe:.3f} of the forgotten answers, in "
                f"gold {reference:.3f}"
            )
    return tuple(found)


def over_forgetting_of(seeds: Sequence[ModelScores], gold: ModelScores | None) -> tuple[str, ...]:
    """The signs of every seed; those that not all of them say in the same words name theirs."""
    said: dict[str, list[str]] = {}
    for seed, scores in enumerate(seeds):
        for sign in over_forgetting(scores, gold):
            said.setdefault(sign, []).append(str(seed))
    return tuple(
        sign if len(where) == len(seeds) else f"seed {', '.join(where)}: {sign}"
        for sign, where in said.items()
    )
