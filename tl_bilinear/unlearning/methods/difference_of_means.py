"""Difference of means: project the direction from retain to forget out of the MLPs' outputs."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.unlearning.methods.method import AbstractMethod, Problem
from tl_bilinear.unlearning.methods.mlp_output import (
    Outputs,
    halves,
    map_mlp_output_,
    mlp_outputs,
)


@dataclass(frozen=True)
class DifferenceOfMeans(AbstractMethod):
    """W_out <- W_out (I - d d^T), d the unit difference of mean outputs at the answers' tokens."""

    name = "difference_of_means"
    kind = "removal"
    source = "Arditi et al. (2406.11717), section 2: directional ablation in the weights"

    layers: tuple[int, ...] = (0,)

    @classmethod
    def candidates(cls, host: AbstractHost) -> list[AbstractMethod]:
        return [cls(layers=layers) for layers in halves(host)]

    def edit_(self, model: Any, problem: Problem) -> None:
        host = get_host(model)
        outputs, _ = mlp_outputs(host, problem, self.layers)
        for layer, found in outputs.items():
            direction = mean_difference(found)
            map_mlp_output_(host, layer, torch.outer(direction, direction))


def mean_difference(outputs: Outputs) -> Float[Tensor, " d_model"]:
    """The unit vector from the retain outputs' mean to the forget outputs'.

    Raises:
        ValueError: equal means.
    """
    difference = outputs.forget.mean(0) - outputs.retain.mean(0)
    if not difference.norm() > 0:
        raise ValueError("forget and retain outputs have one mean: there is no direction")
    return difference / difference.norm()


METHOD = DifferenceOfMeans
