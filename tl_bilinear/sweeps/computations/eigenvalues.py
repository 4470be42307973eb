"""The leading eigenpairs of Q(u), as `eigendecompose` gives them."""

from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tl_bilinear.decompositions import eigendecompose
from tl_bilinear.decompositions.eigen import Gauge
from tl_bilinear.sweeps.computation import AbstractComputation, eigen_bytes
from tl_bilinear.tensor import BilinearTensor


@dataclass(frozen=True)
class Eigenvalues(AbstractComputation):
    """`eigenvalues` [k] by falling magnitude, `error`, `norm`, `trace_shift`, `eigenvectors`."""

    name = "eigenvalues"
    described = "top-k eigenvalues by magnitude, with what they leave out"

    k: int = 8
    gauge: Gauge = "none"
    eigenvectors: bool = False
    """Also the eigenvectors, [k, d_in] per direction; in the shards, not in the index."""

    @property
    def arguments(self) -> dict[str, Any]:
        return asdict(self)

    def __call__(
        self, tensor: BilinearTensor, u: Float[Tensor, "chunk d_out"]
    ) -> dict[str, Tensor]:
        eigen = eigendecompose(tensor, u, self.k, gauge=self.gauge)
        found = {
            "eigenvalues": eigen.eigenvalues,
            "error": eigen.error,
            "norm": eigen.norm,
            "trace_shift": eigen.trace_shift,
        }
        return found | ({"eigenvectors": eigen.eigenvectors} if self.eigenvectors else {})

    def bytes_per_direction(self, tensor: BilinearTensor) -> int:
        """Eigenpairs, and four copies of what is kept on its way to the file."""
        return eigen_bytes(tensor) + 4 * 8 * self.k * (tensor.d_in + 1)

    def require_fit(self, tensor: BilinearTensor) -> None:
        if not 1 <= self.k <= tensor.d_in:
            raise ValueError(f"`k` must be between 1 and d_in = {tensor.d_in}, got {self.k}")
        if self.gauge not in ("none", "traceless"):
            raise ValueError(f'`gauge` must be "none" or "traceless", got {self.gauge!r}')


COMPUTATION = Eigenvalues
