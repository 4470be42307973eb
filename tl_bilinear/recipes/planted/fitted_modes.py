"""The solver over mode amplitudes as a method of the tables.

It is written as extra neurons, and so masks: whoever finds the neurons can delete them.
"""

from dataclasses import dataclass
from typing import Any

from tl_bilinear.ablation import ablate_
from tl_bilinear.hosts import AbstractHost
from tl_bilinear.unlearning.find import find_modes
from tl_bilinear.unlearning.fit import fit_edit
from tl_bilinear.unlearning.methods import AbstractMethod, Problem


@dataclass(frozen=True)
class FittedModes(AbstractMethod):
    """One amplitude for each of these modes, by `fit_edit`."""

    name = "fitted_modes"
    kind = "masking"
    source = "facts/unlearning.md 5, part B: GN over mode amplitudes"

    k: int = 64

    @classmethod
    def candidates(cls, host: AbstractHost) -> list[AbstractMethod]:
        return [cls(k=64), cls(k=512)]

    def edit_(self, model: Any, problem: Problem) -> str:
        sets = problem.forget, problem.retain
        modes = find_modes(model, *sets, k=self.k).modes
        edit = fit_edit(
            model, *sets, "eigenmodes", modes=modes, texts=problem.texts, seed=problem.seed
        )
        ablate_(model, edit.modes)
        return edit.message
