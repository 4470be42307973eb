"""No edit: what every other method is measured against."""

from dataclasses import dataclass
from typing import Any

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.unlearning.methods.method import AbstractMethod, Problem


@dataclass(frozen=True)
class Unedited(AbstractMethod):
    name = "none"
    kind = "none"
    source = "the model as it is"

    @classmethod
    def candidates(cls, host: AbstractHost) -> list[AbstractMethod]:
        return [cls()]

    def edit_(self, model: Any, problem: Problem) -> None:
        return None


METHOD = Unedited
