"""The methods of the tables: every one of the package, and the bases of `fit_edit` beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tl_bilinear.hosts import get_host
from tl_bilinear.recipes.planted.contrastive_projection import ContrastiveProjection
from tl_bilinear.recipes.planted.fitted_modes import FittedModes
from tl_bilinear.recipes.planted.repair_alone import RepairAlone
from tl_bilinear.unlearning.methods import METHODS, TRIALS, AbstractMethod


@dataclass(frozen=True)
class Plan:
    """A method by the name that the tables have for it."""

    name: str
    method: type[AbstractMethod]
    fixed: tuple[tuple[str, Any], ...] = ()
    """Settings that replace the candidates' own."""
    brief: bool = False
    """Beside others: on the folds of the first model alone, without probes, rounding and two of
    the three relearning lessons."""

    def candidates(self, model: Any) -> list[AbstractMethod]:
        """The settings to try on a model: each once, as many as every method may try."""
        found = [
            replace(each, **dict(self.fixed)) for each in self.method.candidates(get_host(model))
        ]
        return list(dict.fromkeys(found))[:TRIALS]


IN_FULL = ("hinge", "npo")
"""Of the baselines those that are measured as fully as the edits, on every scope and model."""
_RANK = (("rank", 8), ("repair", False))
FITTED = (
    Plan("fit_edit", METHODS["fit_edit"], _RANK),
    Plan("fit_edit + repair", METHODS["fit_edit"], (("rank", 8), ("repair", True))),
    Plan(
        "fit_edit, down-projection",
        METHODS["fit_edit"],
        (*_RANK, ("basis", "down_projection")),
        brief=True,
    ),
    Plan("fit_edit, units", METHODS["fit_edit"], (*_RANK, ("basis", "units")), brief=True),
    Plan("fit_edit, eigenmodes", FittedModes, brief=True),
    Plan("repair without an edit", RepairAlone, brief=True),
)


def plans(names: Sequence[str] = ()) -> tuple[Plan, ...]:
    """Those of some names, all by default, in the order of the tables.

    Raises:
        ValueError: a name that is not there.
    """
    others = (
        Plan(name, method, brief=name not in IN_FULL)
        for name, method in METHODS.items()
        if name != "none"
    )
    every = (
        *FITTED,
        Plan("contrastive modes", ContrastiveProjection, brief=True),
        *(plan for plan in others if plan.name not in {each.name for each in FITTED}),
    )
    unknown = sorted(set(names) - {plan.name for plan in every})
    if unknown:
        known = ", ".join(plan.name for plan in every)
        raise ValueError(f"there is no method {unknown[0]!r}: give some of {known}")
    return tuple(plan for plan in every if not names or plan.name in names)
