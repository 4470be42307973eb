"""Statistics of the whole spectrum of Q(u): how few modes carry it.

Of all eigenvalues of Q(u), or of its traceless part; `decompositions/spectrum.py` defines effective
rank, kurtosis and outliers.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.decompositions.eigen import Gauge
from tl_bilinear.decompositions.spectrum import effective_rank, kurtosis, outliers
from tl_bilinear.sweeps.computation import AbstractComputation, matrix_bytes
from tl_bilinear.tensor import BilinearTensor


@dataclass(frozen=True)
class Spectrum(AbstractComputation):
    """`norm`, `trace`, `effective_rank`, `kurtosis`, `outliers`, `top_share`, `positive_share`,
    `largest`, `smallest`.

    Shares are of sum lambda^2, and NaN where Q(u) is zero. From eigenvalues alone,
    O(rank d^2 + d^3) in float64, about a third of the cost of eigenvectors.
    """

    name = "spectrum"
    described = "effective rank, kurtosis and shares of the whole spectrum"

    top: int = 8
    """`top_share` is the share of this many eigenvalues of largest magnitude."""
    gauge: Gauge = "none"

    @property
    def arguments(self) -> dict[str, Any]:
        return asdict(self)

    def __call__(
        self, tensor: BilinearTensor, u: Float[Tensor, "chunk d_out"]
    ) -> dict[str, Tensor]:
        matrix = tensor.to(torch.float64).interaction_matrix(u.to(torch.float64))
        values = torch.linalg.eigvalsh(matrix)
        trace = values.sum(-1)
        if self.gauge == "traceless":
            values = values - values.mean(-1, keepdim=True)
        total = values.square().sum(-1)
        ordered = values.gather(-1, values.abs().argsort(dim=-1, descending=True, stable=True))
        found = {
            "norm": total.sqrt(),
            "trace": trace,
            "effective_rank": effective_rank(values),
            "kurtosis": kurtosis(values),
            "outliers": outliers(ordered, total, tensor.d_in),
            "top_share": ordered[:, : self.top].square().sum(-1) / total,
            "positive_share": values.clamp_min(0).square().sum(-1) / total,
            "largest": values[..., -1],
            "smallest": values[..., 0],
        }
        dtype = tensor.dtype
        return {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in found.items()
        }

    def bytes_per_direction(self, tensor: BilinearTensor) -> int:
        """The weighted left factor beside Q; then Q's symmetrised copies and eigvalsh's own."""
        return matrix_bytes(tensor, max(tensor.rank + 2 * tensor.d_in, 4 * tensor.d_in), 16)

    def require_fit(self, tensor: BilinearTensor) -> None:
        if not 1 <= self.top <= tensor.d_in:
            raise ValueError(f"`top` must be between 1 and d_in = {tensor.d_in}, got {self.top}")
        if self.gauge not in ("none", "traceless"):
            raise ValueError(f'`gauge` must be "none" or "traceless", got {self.gauge!r}')


COMPUTATION = Spectrum
