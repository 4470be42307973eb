"""Random modes of the same layers, directions and root-mean-square contribution: modes' control."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tl_bilinear.ablation import ablate_, matched_random_modes
from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.corpus import mlp_streams
from tl_bilinear.unlearning.find import find_modes
from tl_bilinear.unlearning.methods.method import AbstractMethod, Problem
from tl_bilinear.unlearning.methods.modes import COUNTS


@dataclass(frozen=True)
class RandomModes(AbstractMethod):
    """For each of the first k modes of `find_modes` one random mode that is matched to it.

    Matched on the root mean square of lambda (v.x)^2 over the texts (`matched_random_modes`).
    """

    name = "random_modes"
    kind = "masking"
    source = "the control of modes"

    k: int = 32

    @classmethod
    def candidates(cls, host: AbstractHost) -> list[AbstractMethod]:
        return [cls(k=k) for k in COUNTS]

    def edit_(self, model: Any, problem: Problem) -> None:
        host = get_host(model)
        streams: dict[int, Tensor] = {}
        drawn = []
        found = find_modes(model, problem.forget, problem.retain, k=self.k).modes
        for place, mode in enumerate(found):
            if mode.layer not in streams:
                streams[mode.layer] = mlp_streams(host, mode.layer, problem.texts)
            seed = problem.seed * 1_000_003 + place
            drawn += matched_random_modes(mode, streams[mode.layer], draws=1, seed=seed)
        ablate_(model, drawn)


METHOD = RandomModes
