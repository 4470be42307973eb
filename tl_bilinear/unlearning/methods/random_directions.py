"""Random directions of the MLPs' outputs, as large as the difference of means: its control."""

from dataclasses import dataclass
from typing import Any

import torch

from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.unlearning.methods.difference_of_means import mean_difference
from tl_bilinear.unlearning.methods.method import AbstractMethod, Problem
from tl_bilinear.unlearning.methods.mlp_output import halves, map_mlp_output_, mlp_outputs


@dataclass(frozen=True)
class RandomDirections(AbstractMethod):
    """W_out <- W_out (I - s r r^T), r a random unit vector.

    s gives s (r.y) the root mean square that (d.y) has over the answers' tokens of both sets, d
    being the difference of means: either edit takes out as much.
    """

    name = "random_directions"
    kind = "removal"
    source = "the control of difference_of_means"

    layers: tuple[int, ...] = (0,)

    @classmethod
    def candidates(cls, host: AbstractHost) -> list[AbstractMethod]:
        return [cls(layers=layers) for layers in halves(host)]

    def edit_(self, model: Any, problem: Problem) -> None:
        host = get_host(model)
        outputs, _ = mlp_outputs(host, problem, self.layers)
        generator = torch.Generator().manual_seed(problem.seed)
        for layer, found in outputs.items():
            values = torch.cat([found.forget, found.retain])
            vector = torch.randn(host.d_model, generator=generator, dtype=torch.float64)
            vector = vector / vector.norm()
            wanted = (values @ mean_difference(found)).square().mean().sqrt()
            scale = wanted / (values @ vector).square().mean().sqrt()
            map_mlp_output_(host, layer, scale * torch.outer(vector, vector))


METHOD = RandomDirections
