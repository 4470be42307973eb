"""Singular value decomposition of the interaction matrix of a tensor that reads two inputs.

    u . B(x, y) = x^T Q(u) y = sum_k sigma_k (l_k . x) (r_k . y)

For a composed path (one head's output against another's, say) Q(u) is rectangular, or square and
not symmetric, and its singular vectors are what its eigenvectors are for an MLP (2410.08417
section 3.2 for the symmetric case). Pairs are ordered by sigma, descending; the entry of largest
magnitude of l_k is positive.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.decompositions import spectrum
from tl_bilinear.decompositions.arguments import is_finite, not_finite, require_interaction
from tl_bilinear.decompositions.interaction_operator import interaction_matrix
from tl_bilinear.tensor import BilinearTensor


@dataclass(frozen=True, eq=False)
class SingularDecomposition:
    """Singular triples of Q(u), for one direction or a batch of them."""

    singular_values: Float[Tensor, "*batch k"]
    left_vectors: Float[Tensor, "*batch k d_left"]
    """Orthonormal rows, in the space of the first input."""
    right_vectors: Float[Tensor, "*batch k d_right"]
    """Orthonormal rows, in the space of the second input."""
    direction: Float[Tensor, "*batch d_out"]
    error: Float[Tensor, "*batch"]
    """Frobenius norm of what the kept triples leave out; 0 where all are kept."""

    @property
    def norm(self) -> Float[Tensor, "*batch"]:
        """Frobenius norm of Q(u), kept triples or not."""
        return (self.error**2 + self.singular_values.square().sum(-1)).sqrt()

    def contributions(
        self, x: Float[Tensor, "*points d_left"], y: Float[Tensor, "*points d_right"]
    ) -> Float[Tensor, "*points k"]:
        """sigma_k (l_k . x) (r_k . y) for every kept triple; for a single direction."""
        self._require_single("contributions")
        return self.singular_values * (x @ self.left_vectors.mT) * (y @ self.right_vectors.mT)

    def truncate(self, k: int) -> "SingularDecomposition":
        """The k triples of largest sigma."""
        kept = self.singular_values.shape[-1]
        if not 1 <= k <= kept:
            raise ValueError(f"`k` must be between 1 and the {kept} triples kept here, got {k}")
        cut = self.singular_values[..., k:].square().sum(-1)
        return replace(
            self,
            singular_values=self.singular_values[..., :k],
            left_vectors=self.left_vectors[..., :k, :],
            right_vectors=self.right_vectors[..., :k, :],
            error=(self.error**2 + cut).sqrt(),
        )

    def to_tensor(self) -> BilinearTensor:
        """The kept part as a tensor of two inputs with one output, u . B(x, y)."""
        self._require_single("to_tensor")
        return BilinearTensor(
            left=self.left_vectors.mT,
            right=self.right_vectors.mT,
            out=self.singular_values[None],
            shared_input=False,
        )

    def truncation_curve(self) -> Float[Tensor, "*batch k"]:
        """Share of |Q|_F^2 that the first 1, 2, ..., k triples hold."""
        return spectrum.truncation_curve(self.singular_values, self.norm**2)

    def degenerate_groups(self, rtol: float = 1e-6) -> tuple[tuple[int, ...], ...]:
        """Indices of kept triples whose sigma agree within `rtol` of the largest.

        The vectors inside such a group are arbitrary up to one rotation of both sides.
        """
        self._require_single("degenerate_groups")
        values = self.singular_values.detach()
        return spectrum.degenerate_groups(values, rtol, float(values[0]) if len(values) else 0.0)

    def _require_single(self, what: str) -> None:
        if self.singular_values.ndim != 1:
            raise ValueError(
                f"`{what}` is for a single direction; this result holds a batch of shape "
                f"{tuple(self.singular_values.shape[:-1])}: decompose one direction"
            )


def singular_decompose(
    tensor: BilinearTensor,
    u: Float[Tensor, "*batch d_out"],
    k: int | None = None,
    *,
    dtype: torch.dtype = torch.float64,
) -> SingularDecomposition:
    """Singular triples of Q(u) by sigma, one direction at a time.

    O(rank d^2 + d^3) per direction; where the rank is smaller than both legs, O(rank^3 + rank d k)
    after one QR decomposition of each leg.

    Args:
        tensor: its legs read two inputs (`shared_input` False).
        u: output directions; they need not be normalised (sigma scales with |u|).
        k: how many triples to keep; None is all that can be above zero, the smallest of d_left,
            d_right and the rank.
        dtype: of the computation, float64 or float32; the result has the tensor's.

    Raises:
        ValueError: a tensor of one input, a wrong shape of `u`, a direction that is zero, numbers
            that are not finite, or `k` out of range.
    """
    if tensor.shared_input:
        raise ValueError(
            "both legs of this tensor read one input: use eigendecompose (or say "
            "`shared_input=False` where they do not)"
        )
    require_interaction(u, tensor, dtype)
    most = min(tensor.d_left, tensor.d_right, tensor.rank)
    if k is not None and not 1 <= k <= most:
        raise ValueError(f"`k` must be between 1 and min(d_left, d_right, rank) = {most}, got {k}")
    k = most if k is None else k
    weights = u.to(tensor.device, dtype).reshape(-1, tensor.d_out) @ tensor.out.to(dtype)
    if not is_finite(weights):
        raise not_finite()
    legs, core = (None, None), tensor.to(dtype)
    if tensor.rank < min(tensor.d_left, tensor.d_right):
        (left, small_left), (right, small_right) = (
            torch.linalg.qr(leg) for leg in (core.left, core.right)
        )
        legs, core = (left, right), replace(core, left=small_left, right=small_right)
    triples = [_svd(interaction_matrix(core, row), legs, k) for row in weights]
    shapes = (k,), (k, tensor.d_left), (k, tensor.d_right), ()
    parts = (
        torch.stack(part) if part else weights.new_zeros(0, *shape)
        for part, shape in zip(list(zip(*triples, strict=True)) or [()] * 4, shapes, strict=True)
    )
    values, left, right, error = (
        part.to(tensor.dtype).reshape((*u.shape[:-1], *shape))
        for part, shape in zip(parts, shapes, strict=True)
    )
    return SingularDecomposition(values, left, right, u.to(tensor.device, tensor.dtype), error)


def _svd(
    matrix: Tensor, legs: tuple[Tensor | None, Tensor | None], k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """sigma, left and right vectors as rows, and the norm of what is dropped."""
    columns, values, rows = torch.linalg.svd(matrix, full_matrices=False)
    left, right = columns[:, :k].T, rows[:k]
    left = left if legs[0] is None else left @ legs[0].T
    right = right if legs[1] is None else right @ legs[1].T
    largest = left.gather(-1, left.abs().argmax(-1, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0)
    return values[:k], left * sign, right * sign, values[k:].square().sum().sqrt()
