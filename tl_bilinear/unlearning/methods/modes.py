"""Mode removal: the eigenmodes that read the forget prompts most, taken out as extra neurons."""

from dataclasses import dataclass
from typing import Any

from tl_bilinear.ablation import ablate_
from tl_bilinear.hosts import AbstractHost
from tl_bilinear.unlearning.find import find_modes
from tl_bilinear.unlearning.methods.method import AbstractMethod, Problem

COUNTS = (8, 32, 128, 512)


@dataclass(frozen=True)
class Modes(AbstractMethod):
    """The first k modes of `find_modes`, ablated in the weights; exact, and masking."""

    name = "modes"
    kind = "masking"
    source = "mode deletion (2602.05635), chosen by forget share (find_modes)"

    k: int = 32

    @classmethod
    def candidates(cls, host: AbstractHost) -> list[AbstractMethod]:
        return [cls(k=k) for k in COUNTS]

    def edit_(self, model: Any, problem: Problem) -> None:
        ablate_(model, find_modes(model, problem.forget, problem.retain, k=self.k).modes)


METHOD = Modes
