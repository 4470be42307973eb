"""What a report could not compute, each with the reason."""

from collections.abc import Collection

from tl_bilinear.unlearning.measure import ModelScores
from tl_bilinear.unlearning.relearning import Lesson
from tl_bilinear.unlearning.report import Missing

ELSEWHERE = "is not measured by this package: export the model and use open-unlearning"
NO_GOLD = "no gold model was given (gold=): train one without the forget set"
NO_UNSEEN = "no question of the forget set has `unseen` wordings"
NO_UNRELATED = "every held-out text names a forgotten subject, or holds a wording"
NO_WRONG = "no question of the forget set has `wrong` answers"


def missing_numbers(
    scores: ModelScores, gold: bool, lessons: Collection[Lesson], scalable: str, full: bool
) -> tuple[Missing, ...]:
    """What is absent from the scores, in the order of the report.

    Args:
        gold: whether a gold model was given.
        lessons: those that could be given.
        scalable: why the edit cannot be scaled; empty where it can.
        full: whether relearning, rounding and depth were asked for.
    """
    found = []
    if scores.forget_unseen is None:
        found.append(Missing("forget metrics on unseen wordings", NO_UNSEEN))
    if not scores.forget.truth_ratios:
        found.append(Missing("truth ratio", NO_WRONG))
    if not gold:
        found.append(Missing("forget quality", NO_GOLD))
        found.append(Missing("gold's row of every table", NO_GOLD))
    elif scores.forget_quality is None:
        found.append(Missing("forget quality", NO_WRONG))
    if scores.near is None:
        found.append(Missing("near retain", "no near set was given (near=)"))
    if scores.far is None:
        found.append(Missing("far retain", "no far set was given (far=)"))
    if "half" not in lessons:
        found.append(
            Missing("relearning of one half, and its leak", "the forget set has one subject alone")
        )
    if "text" not in lessons:
        found.append(Missing("relearning from unrelated text", NO_UNRELATED))
    if full and scores.depth is not None and not scores.depth.probes:
        found.append(
            Missing(
                "probes",
                "they are fitted on retained questions, and fewer than half of the forgotten "
                "answers are answers of retained questions",
            )
        )
    if scalable:
        found.append(Missing("dose curve", scalable))
    found.append(Missing("membership inference, PrivLeak, ROUGE, model utility", ELSEWHERE))
    return tuple(found)
