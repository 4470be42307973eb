"""`fit_edit`, the Gauss-Newton edit, behind the interface of the methods it is compared with."""

from dataclasses import dataclass
from typing import Any

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.unlearning.bases import BasisName
from tl_bilinear.unlearning.fit import fit_edit
from tl_bilinear.unlearning.methods.method import AbstractMethod, Problem
from tl_bilinear.unlearning.repair import repair_, take_anchor


@dataclass(frozen=True)
class Fitted(AbstractMethod):
    """`fit_edit` with its basis and rank; `repair_` behind it where `repair` says so."""

    name = "fit_edit"
    kind = "removal"
    source = "retain-constrained Gauss-Newton, tl_bilinear.fit_edit"

    basis: BasisName = "contrastive"
    rank: int = 8
    kl_limit: float = 1.0
    repair: bool = True

    @classmethod
    def candidates(cls, host: AbstractHost) -> list[AbstractMethod]:
        # A down-projection costs less text and would be taken, but fails in other wordings.
        return [cls(rank=rank) for rank in (8, 4)]

    def edit_(self, model: Any, problem: Problem) -> str:
        texts = problem.texts
        anchor = None
        if self.repair:
            anchor = take_anchor(model, problem.forget, problem.retain, texts, seed=problem.seed)
        edit = fit_edit(
            model,
            problem.forget,
            problem.retain,
            self.basis,
            texts=texts,
            rank=self.rank,
            kl_limit=self.kl_limit,
            seed=problem.seed,
        )
        edit.apply_(model)
        if anchor is None:
            return edit.message
        repair = repair_(model, anchor, seed=problem.seed)
        return f"{edit.message}; {repair.message}"


METHOD = Fitted
