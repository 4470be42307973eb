"""LEACE at the MLPs' outputs: no linear probe there tells what was to be forgotten."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.unlearning.answer_rows import AnswerRows
from tl_bilinear.unlearning.leace import fit_eraser
from tl_bilinear.unlearning.methods.method import AbstractMethod, Problem
from tl_bilinear.unlearning.methods.mlp_output import (
    Outputs,
    halves,
    map_mlp_output_,
    mlp_outputs,
)

Concept = Literal["forget", "answers"]


@dataclass(frozen=True)
class LEACE(AbstractMethod):
    """Each MLP's output y becomes y - W^+ P W (y - mean), fitted at the answers' tokens.

    The constant needs an output bias. A model without one gets it, in memory; `save_pretrained`
    refuses such a model where its class has no place for it (a bridge of a bias-free Llama).
    """

    name = "leace"
    kind = "removal"
    source = "Belrose et al. (2306.03819), theorem 4.3"

    layers: tuple[int, ...] = (0,)
    concept: Concept = "forget"
    """Erase that a token belongs to the forget set, or which of its answers' tokens it is."""

    @classmethod
    def candidates(cls, host: AbstractHost) -> list[AbstractMethod]:
        layers = halves(host)[:1] + halves(host)[-1:]
        concepts: tuple[Concept, ...] = ("forget", "answers")
        return [cls(layers=each, concept=c) for each in dict.fromkeys(layers) for c in concepts]

    def edit_(self, model: Any, problem: Problem) -> None:
        host = get_host(model)
        outputs, rows = mlp_outputs(host, problem, self.layers)
        for layer, found in outputs.items():
            labels = self._labels(found, rows)
            eraser = fit_eraser(torch.cat([found.forget, found.retain]), labels)
            map_mlp_output_(host, layer, eraser.erased, eraser.mean)

    def _labels(self, found: Outputs, rows: AnswerRows) -> Float[Tensor, "site label"]:
        """One-hot; a retained token is no label."""
        if self.concept == "forget":
            labels = torch.ones(len(found.forget), 1, dtype=torch.float64)
        else:
            _, index = rows.label.unique(return_inverse=True)
            labels = torch.nn.functional.one_hot(index).double()
        return torch.cat([labels, labels.new_zeros(len(found.retain), labels.shape[1])])


METHOD = LEACE
