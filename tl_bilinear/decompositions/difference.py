"""What changed between two checkpoints along an output direction, as eigenmodes of the change.

    Q_a(u) - Q_b(u) = sum_k lambda_k v_k v_k^T

B_a - B_b stays factored, of rank rank_a + rank_b. A mode of the change is no mode of either
checkpoint: `in_a` and `in_b` say how much each has along it.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.decompositions.arguments import require_directions, require_sound
from tl_bilinear.decompositions.eigen import Eigendecomposition, Gauge, eigendecompose
from tl_bilinear.tensor import BilinearTensor


@dataclass(frozen=True, eq=False)
class DifferenceModes:
    """Eigenmodes of Q_a(u) - Q_b(u), for one direction or a batch."""

    eigen: Eigendecomposition
    """Of the difference, with its gauge, error and degenerate groups."""
    in_a: Float[Tensor, "*batch k"]
    """v_k^T Q_a v_k, in the gauge of `eigen`."""
    in_b: Float[Tensor, "*batch k"]
    """v_k^T Q_b v_k; in_a - in_b is the eigenvalue."""
    norm_a: Float[Tensor, "*batch"]
    """Frobenius norm of Q_a(u), in the same gauge."""
    norm_b: Float[Tensor, "*batch"]

    @property
    def eigenvalues(self) -> Float[Tensor, "*batch k"]:
        return self.eigen.eigenvalues

    @property
    def eigenvectors(self) -> Float[Tensor, "*batch k d_in"]:
        return self.eigen.eigenvectors

    @property
    def error(self) -> Float[Tensor, "*batch"]:
        """Frobenius norm of the change that the kept modes leave out."""
        return self.eigen.error

    @property
    def shares(self) -> Float[Tensor, "*batch k"]:
        """lambda_k^2 / |Q_a - Q_b|^2: the share of the change that a mode carries (0 of none)."""
        whole = self.eigen.norm[..., None] ** 2
        tiny = torch.finfo(whole.dtype).tiny
        return self.eigenvalues**2 / whole.clamp_min(tiny)

    def to_tensor(self) -> BilinearTensor:
        """The kept part of u . (B_a - B_b)(x), for a single direction."""
        return self.eigen.to_tensor()

    def truncate(self, k: int) -> "DifferenceModes":
        """The k modes of largest |lambda|."""
        return replace(
            self,
            eigen=self.eigen.truncate(k),
            in_a=self.in_a[..., :k],
            in_b=self.in_b[..., :k],
        )

    def degenerate_groups(self, rtol: float = 1e-6) -> tuple[tuple[int, ...], ...]:
        """Indices of equal eigenvalues, for a single direction: only their span means something."""
        return self.eigen.degenerate_groups(rtol)


@torch.no_grad()
def difference_modes(
    a: BilinearTensor,
    b: BilinearTensor,
    u: Float[Tensor, "*batch d_out"],
    k: int | None = None,
    *,
    gauge: Gauge = "none",
) -> DifferenceModes:
    """Eigenmodes of the change from b to a along u. O((rank_a + rank_b) d^2 + d^3) per direction.

    Raises:
        ValueError: tensors that read or write different spaces, a wrong `u`, `k` out of range, an
            unknown gauge, rank 0, or numbers that are not finite.
    """
    for tensor, name in ((a, "a"), (b, "b")):
        require_sound(tensor, name)
    shapes = [(tensor.d_out, tensor.d_left, tensor.d_right) for tensor in (a, b)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "`difference_modes` needs two tensors that read and write the same spaces (d_out, "
            f"d_left, d_right), as checkpoints of one layer do: got {shapes[0]} and {shapes[1]}"
        )
    require_directions(u, a, "u")
    eigen = eigendecompose(a - b, u, k, gauge=gauge)
    inside, norms = [], []
    for tensor in (a, b):
        matrix = tensor.to(torch.float64).interaction_matrix(u.to(tensor.out.device, torch.float64))
        if gauge == "traceless":
            shift = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
            matrix = matrix - shift[..., None, None] * torch.eye(tensor.d_in).to(matrix)
        vectors = eigen.eigenvectors.double()
        inside.append(((vectors @ matrix) * vectors).sum(-1).to(eigen.eigenvalues))
        norms.append(matrix.norm(dim=(-2, -1)).to(eigen.eigenvalues))
    return DifferenceModes(eigen, *inside, *norms)
