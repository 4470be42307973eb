"""Eigendecomposition of the interaction matrix of one output direction.

    u . B(x) = x^T Q(u) x = sum_k lambda_k (v_k . x)^2

(2410.08417 section 3.2). Eigenpairs are ordered by |lambda|, descending; the sign of an
eigenvector is fixed by its entry of largest magnitude, which is positive.

After RMSNorm |x|^2 is (up to the norm's epsilon) constant, so Q and Q + a I are the same
function up to a constant: `gauge="traceless"` takes out a = tr Q / d. A spectrum is only
comparable within one gauge, so a result carries the name of its own.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.tensor import BilinearTensor

Gauge = Literal["none", "traceless"]


@dataclass(frozen=True, eq=False)
class Eigendecomposition:
    """Eigenpairs of Q(u), for one direction or a batch of them."""

    eigenvalues: Float[Tensor, "*batch k"]
    eigenvectors: Float[Tensor, "*batch k d_in"]
    """Orthonormal rows."""
    direction: Float[Tensor, "*batch d_out"]
    gauge: Gauge
    trace_shift: Float[Tensor, "*batch"]
    """a, the multiple of the identity that the gauge took out of Q; zero without a gauge."""
    error: Float[Tensor, "*batch"]
    """Frobenius norm of what the kept pairs leave out; 0 where all are kept."""

    @property
    def norm(self) -> Float[Tensor, "*batch"]:
        """Frobenius norm of the whole decomposed matrix, kept pairs or not."""
        return (self.error**2 + self.eigenvalues.square().sum(-1)).sqrt()

    def activations(self, x: Float[Tensor, "*points d_in"]) -> Float[Tensor, "*points k"]:
        """v_k . x for every kept pair; for a single direction."""
        self._require_single("activations")
        return x @ self.eigenvectors.mT

    def contributions(self, x: Float[Tensor, "*points d_in"]) -> Float[Tensor, "*points k"]:
        """lambda_k (v_k . x)^2 for every kept pair; for a single direction."""
        return self.eigenvalues * self.activations(x) ** 2

    def truncate(self, k: int) -> "Eigendecomposition":
        """The k pairs of largest |lambda|."""
        kept = self.eigenvalues.shape[-1]
        if not 1 <= k <= kept:
            raise ValueError(f"`k` must be between 1 and the {kept} pairs kept here, got {k}")
        return replace(
            self,
            eigenvalues=self.eigenvalues[..., :k],
            eigenvectors=self.eigenvectors[..., :k, :],
            error=(self.error**2 + self.eigenvalues[..., k:].square().sum(-1)).sqrt(),
        )

    def to_tensor(self) -> BilinearTensor:
        """The kept part as a tensor with one output, u . B(x), the gauge's part put back."""
        self._require_single("to_tensor")
        legs, weights = self.eigenvectors.mT, self.eigenvalues
        if self.gauge == "traceless":
            identity = torch.eye(legs.shape[0], dtype=legs.dtype, device=legs.device)
            legs = torch.cat([legs, identity], dim=1)
            weights = torch.cat([weights, self.trace_shift.expand(identity.shape[0])])
        return BilinearTensor(left=legs, right=legs, out=weights[None])

    def degenerate_groups(self, rtol: float = 1e-6) -> tuple[tuple[int, ...], ...]:
        """Indices of kept pairs whose eigenvalues agree within `rtol` of the largest.

        The vectors inside such a group are arbitrary: only the subspace means something.
        """
        self._require_single("degenerate_groups")
        values = self.eigenvalues.tolist()
        if not values:
            return ()
        scale = max(abs(value) for value in values)
        order = sorted(range(len(values)), key=lambda index: values[index])
        groups: list[list[int]] = [[order[0]]]
        for before, index in zip(order, order[1:], strict=False):
            if values[index] - values[before] <= rtol * scale:
                groups[-1].append(index)
            else:
                groups.append([index])
        return tuple(tuple(sorted(group)) for group in groups if len(group) > 1)

    def _require_single(self, what: str) -> None:
        if self.eigenvalues.ndim != 1:
            raise ValueError(
                f"`{what}` is for a single direction; this result holds a batch of shape "
                f"{tuple(self.eigenvalues.shape[:-1])}: decompose one direction"
            )


def eigendecompose(
    tensor: BilinearTensor,
    u: Float[Tensor, "*batch d_out"],
    k: int | None = None,
    *,
    gauge: Gauge = "none",
) -> Eigendecomposition:
    """Eigenpairs of Q(u) by |lambda|. O(rank d^2 + d^3) per direction, in float64.

    Args:
        tensor: both legs must read one space.
        u: output directions; they need not be normalised (lambda scales with u).
        k: how many pairs to keep; all d_in where it is None.
        gauge: "none" decomposes Q as it stands, "traceless" decomposes Q - (tr Q / d) I.

    Raises:
        ValueError: a wrong shape of `u`, numbers that are not finite, `k` out of range, an
            unknown gauge, or legs that read different spaces.
    """
    d_in = tensor.d_in
    if u.shape[-1:] != (tensor.d_out,):
        raise ValueError(
            f"`u` must have {tensor.d_out} entries on its last axis (d_out of the tensor), "
            f"got shape {tuple(u.shape)}"
        )
    if k is not None and not 1 <= k <= d_in:
        raise ValueError(f"`k` must be between 1 and d_in = {d_in}, got {k}")
    if gauge not in ("none", "traceless"):
        raise ValueError(f'`gauge` must be "none" or "traceless", got {gauge!r}')
    matrix = tensor.to(torch.float64).interaction_matrix(u.to(tensor.out.device, torch.float64))
    if not torch.isfinite(matrix).all():
        raise ValueError(
            "the interaction matrix has entries that are not finite: look for NaN or infinite "
            "weights, or a direction that is not finite"
        )
    shift = torch.zeros(matrix.shape[:-2], dtype=matrix.dtype, device=matrix.device)
    if gauge == "traceless":
        shift = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
        identity = torch.eye(d_in, dtype=matrix.dtype, device=matrix.device)
        matrix = matrix - shift[..., None, None] * identity
    values, columns = torch.linalg.eigh(matrix)
    order = values.abs().argsort(dim=-1, descending=True, stable=True)
    dropped = values.gather(-1, order)[..., d_in if k is None else k :]
    order = order[..., :k]
    vectors = columns.mT.gather(-2, order[..., None].expand(*order.shape, d_in))
    largest = vectors.gather(-1, vectors.abs().argmax(-1, keepdim=True))
    vectors = vectors * torch.where(largest < 0, -1.0, 1.0)
    dtype = tensor.out.dtype
    return Eigendecomposition(
        eigenvalues=values.gather(-1, order).to(dtype),
        eigenvectors=vectors.to(dtype),
        direction=u.to(tensor.out.device, dtype),
        gauge=gauge,
        trace_shift=shift.to(dtype),
        error=dropped.square().sum(-1).sqrt().to(dtype),
    )
