"""The repair without an edit before it: what the edit itself is good for."""

from dataclasses import dataclass
from typing import Any

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.unlearning.methods import AbstractMethod, Problem
from tl_bilinear.unlearning.repair import repair_, take_anchor


@dataclass(frozen=True)
class RepairAlone(AbstractMethod):
    """`repair_` of the unedited model: it is trained to forget what the edit would have taken."""

    name = "repair_alone"
    kind = "removal"
    source = "control: tl_bilinear.repair_ without tl_bilinear.fit_edit"

    @classmethod
    def candidates(cls, host: AbstractHost) -> list[AbstractMethod]:
        return [cls()]

    def edit_(self, model: Any, problem: Problem) -> str:
        sets = problem.forget, problem.retain, problem.texts
        anchor = take_anchor(model, *sets, seed=problem.seed)
        # Any forgetting costs some KL here: it is no harm.
        done = repair_(model, anchor, undo_harm=False, seed=problem.seed)
        return done.message
