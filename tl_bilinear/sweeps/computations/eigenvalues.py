"""The leading eigenpairs of Q(u), as `eigendecompose` gives them."""

from dataclasses import asdict, dataclass
from typing import Any, cast, get_args

from jaxtyping import Float
from torch import Tensor

from tl_bilinear.decompositions import eigendecompose
from tl_bilinear.decompositions.eigen import Gauge, Method
from tl_bilinear.sweeps.computation import AbstractComputation, matrix_bytes
from tl_bilinear.tensor import BilinearTensor

WORK_BYTES = 2**26
"""For `eigendecompose`'s own chunks inside one of ours."""


@dataclass(frozen=True)
class Eigenvalues(AbstractComputation):
    """`eigenvalues` [k] by falling magnitude, `error`, `norm`, `trace_shift`, `eigenvectors`.

    And how far to trust them: `residual`, the largest of the kept pairs, and `certified`.
    """

    name = "eigenvalues"
    described = "top-k eigenvalues by magnitude, with what they leave out"

    k: int = 8
    gauge: Gauge = "none"
    method: Method = "auto"
    eigenvectors: bool = False
    """Also the eigenvectors, [k, d_in] per direction; in the shards, not in the index."""

    @property
    def arguments(self) -> dict[str, Any]:
        return asdict(self)

    def __call__(
        self, tensor: BilinearTensor, u: Float[Tensor, "chunk d_out"]
    ) -> dict[str, Tensor]:
        eigen = eigendecompose(
            tensor, u, self.k, gauge=self.gauge, method=self.method, work_bytes=WORK_BYTES
        )
        found = {
            "eigenvalues": eigen.eigenvalues,
            "error": eigen.error,
            "norm": eigen.norm,
            "trace_shift": eigen.trace_shift,
            "residual": eigen.residuals.amax(-1),
            "certified": eigen.certified,
        }
        return found | ({"eigenvectors": eigen.eigenvectors} if self.eigenvectors else {})

    def bytes_per_direction(self, tensor: BilinearTensor) -> int:
        """What is kept, in six copies on its way to the file, and weights on the rank axis."""
        kept = 6 * self.k * (tensor.d_in + 2)
        return 8 * (kept + 4 * tensor.rank + 4 * tensor.d_out)

    def bytes_fixed(self, tensor: BilinearTensor) -> int:
        """The chunks of `eigendecompose`, or one direction's; the factors in float64, thrice."""
        d, r = tensor.d_in, tensor.rank
        return max(WORK_BYTES, matrix_bytes(tensor, 10 * d, 2 * r)) + matrix_bytes(tensor, 9 * r)

    def require_fit(self, tensor: BilinearTensor) -> None:
        if not 1 <= self.k <= tensor.d_in:
            raise ValueError(f"`k` must be between 1 and d_in = {tensor.d_in}, got {self.k}")
        for name, kind in (("gauge", Gauge), ("method", Method)):
            value, known = cast(str, getattr(self, name)), get_args(kind)
            if value not in known:
                raise ValueError(f"`{name}` must be one of {list(known)}, got {value!r}")


COMPUTATION = Eigenvalues
