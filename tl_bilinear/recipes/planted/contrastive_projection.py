"""Contrastive modes without training: project the MLPs' outputs off what forgotten answers use."""

from dataclasses import dataclass
from typing import Any

from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.unlearning.contrast import contrastive_directions, second_moment
from tl_bilinear.unlearning.methods import AbstractMethod, Problem
from tl_bilinear.unlearning.methods.mlp_output import map_mlp_output_, mlp_outputs


@dataclass(frozen=True)
class ContrastiveProjection(AbstractMethod):
    """W_out loses the k components of every layer's output with the largest forget share."""

    name = "contrastive_projection"
    kind = "removal"
    source = "facts/unlearning.md 5: generalised eigenproblem of forget and retain second moments"

    k: int = 3

    @classmethod
    def candidates(cls, host: AbstractHost) -> list[AbstractMethod]:
        return [cls(k=k) for k in (1, 3, 8, 16)]

    def edit_(self, model: Any, problem: Problem) -> None:
        host = get_host(model)
        outputs, _ = mlp_outputs(host, problem, range(host.n_layers))
        for layer, found in outputs.items():
            directions = contrastive_directions(
                second_moment(found.forget), second_moment(found.retain), self.k
            )
            map_mlp_output_(host, layer, directions.writers.T @ directions.readers)
