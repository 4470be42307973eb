"""Random directions of the MLPs' outputs, as large as the difference of means: its control."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.unlearning.methods.difference_of_means import mean_difference
from tl_bilinear.unlearning.methods.mlp_output import OutputMap, Outputs


@dataclass(frozen=True)
class RandomDirections(OutputMap):
    """W_out <- W_out (I - s r r^T), r a random unit vector.

    s gives s (r.y) the root mean square that (d.y) has over the answers' tokens of both sets, d
    being the difference of means: either edit takes out as much.
    """

    name = "random_directions"
    kind = "removal"
    source = "the control of difference_of_means"

    def taken(self, found: Outputs, generator: torch.Generator) -> Float[Tensor, "d_model d_model"]:
        values = torch.cat([found.forget, found.retain])
        vector = torch.randn(values.shape[1], generator=generator, dtype=torch.float64)
        vector = vector / vector.norm()
        wanted = (values @ mean_difference(found)).square().mean().sqrt()
        scale = wanted / (values @ vector).square().mean().sqrt()
        return scale * torch.outer(vector, vector)


METHOD = RandomDirections
