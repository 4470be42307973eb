"""Difference of means: project the direction from retain to forget out of the MLPs' outputs."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.unlearning.methods.mlp_output import OutputMap, Outputs


@dataclass(frozen=True)
class DifferenceOfMeans(OutputMap):
    """W_out <- W_out (I - d d^T), d the unit difference of mean outputs at the answers' tokens."""

    name = "difference_of_means"
    kind = "removal"
    source = "Arditi et al. (2406.11717), section 2: directional ablation in the weights"

    def taken(self, found: Outputs, generator: torch.Generator) -> Float[Tensor, "d_model d_model"]:
        direction = mean_difference(found)
        return torch.outer(direction, direction)


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
