"""A layer put together again from the interaction matrices of directions that span its outputs.

    B = sum_c u_c^+ (x) Q(u_c),    u_c^+ the columns of the pseudo-inverse of U (directions as rows)

(2410.08417 appendix K). Directions that do not span leave out what is orthogonal to all of them.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.decompositions.arguments import (
    require_count,
    require_directions,
    require_sound,
)
from tl_bilinear.decompositions.eigen import Eigendecomposition, eigendecompose
from tl_bilinear.decompositions.gram import distance
from tl_bilinear.tensor import BilinearTensor


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Directions, their pseudo-inverse, and the eigenpairs that stand for each Q(u_c)."""

    tensor: BilinearTensor
    """What is reconstructed, for the error."""
    directions: Float[Tensor, "directions d_out"]
    duals: Float[Tensor, "directions d_out"]
    """u_c^+ as rows: where Q(u_c) is written."""
    eigenvalues: Float[Tensor, "directions k"]
    """Of Q(u_c), by falling magnitude; no gauge."""
    eigenvectors: Float[Tensor, "directions k d_in"]
    missing: Float[Tensor, "n d_out"]
    """Orthonormal rows: the subspace of output space that no direction reaches."""
    condition: float
    """Largest over smallest singular value of U that is not zero: errors of single Q(u_c) may grow
    by so much."""
    error: Float[Tensor, ""]
    """Frobenius norm of (symmetric part of the tensor) - (this)."""

    @property
    def spans(self) -> bool:
        """Whether the directions span output space."""
        return len(self.missing) == 0

    def to_tensor(self) -> BilinearTensor:
        """The sum, factored at rank directions * k."""
        legs = self.eigenvectors.flatten(0, 1).T
        out = self.duals[:, None, :] * self.eigenvalues[..., None]
        return BilinearTensor(legs, legs, out.flatten(0, 1).T)

    def truncate(self, k: int) -> "Reconstruction":
        """The k pairs of largest |lambda| of every direction."""
        require_count(k, self.eigenvalues.shape[1], "k", "the pairs kept here")
        cut = replace(
            self, eigenvalues=self.eigenvalues[:, :k], eigenvectors=self.eigenvectors[:, :k]
        )
        return replace(cut, error=_error(cut))


@torch.no_grad()
def reconstruct(
    tensor: BilinearTensor,
    u: Float[Tensor, "directions d_out"],
    parts: Eigendecomposition | Float[Tensor, "directions d_in d_in"] | None = None,
    k: int | None = None,
) -> Reconstruction:
    """The tensor from interaction matrices of the directions u, with the error of doing so.

    Args:
        tensor: the reference; symmetrised.
        u: directions as rows, any number.
        parts: what stands for each Q(u_c): their batched eigendecomposition, matrices, or None for
            the tensor's own.
        k: eigenpairs per direction; None keeps all that are there.

    Raises:
        ValueError: wrong or no directions, parts of another number, width or other directions, `k`
            out of range, numbers that are not finite, or legs that read different spaces.
    """
    require_sound(tensor)
    d_in = tensor.d_in
    if u.ndim != 2:
        raise ValueError(
            f"`u` must be directions as rows, [directions, {tensor.d_out}], got {tuple(u.shape)}"
        )
    require_directions(u, tensor, "u")
    whole, rows = tensor.to(torch.float64), u.to(tensor.out.device, torch.float64)
    values, vectors = _pairs(whole, rows, parts)
    if k is not None:
        require_count(k, values.shape[1], "k", f"the pairs given, of d_in = {d_in}")
        values, vectors = values[:, :k], vectors[:, :k]
    _, sizes, columns = torch.linalg.svd(rows, full_matrices=True)
    cut = max(rows.shape) * torch.finfo(torch.float64).eps * sizes[0]
    rank = int((sizes > cut).sum())
    found = Reconstruction(
        tensor=whole,
        directions=rows,
        duals=torch.linalg.pinv(rows, atol=float(cut), rtol=0.0).T,
        eigenvalues=values,
        eigenvectors=vectors,
        missing=columns[rank:],
        condition=float(sizes[0] / sizes[rank - 1]) if rank else float("inf"),
        error=values.new_zeros(()),
    )
    return _cast(replace(found, error=_error(found)), tensor)


def _pairs(
    tensor: BilinearTensor,
    u: Float[Tensor, "directions d_out"],
    parts: Eigendecomposition | Tensor | None,
) -> tuple[Tensor, Tensor]:
    if parts is None:
        parts = eigendecompose(tensor, u)
    if isinstance(parts, Eigendecomposition):
        directions = parts.direction.to(u)
        if directions.shape != u.shape or not torch.allclose(directions, u, rtol=1e-5, atol=1e-6):
            raise ValueError(
                "`parts` decomposes other directions than `u`: decompose the same rows, "
                f"{tuple(u.shape)}, got {tuple(directions.shape)}"
            )
        values, vectors = parts.eigenvalues.to(u), parts.eigenvectors.to(u)
        if parts.gauge == "traceless" and parts.trace_shift.abs().max() > 0:
            raise ValueError(
                '`parts` has the gauge "traceless", which took part of each Q out: '
                'decompose with gauge="none"'
            )
        _require_width(vectors, tensor)
        return values, vectors
    matrices = parts.to(u)
    if matrices.shape != (len(u), tensor.d_in, tensor.d_in):
        raise ValueError(
            f"`parts` must hold one [{tensor.d_in}, {tensor.d_in}] matrix for each of {len(u)} "
            f"directions, got shape {tuple(matrices.shape)}"
        )
    if not torch.isfinite(matrices).all():
        raise ValueError("`parts` has entries that are not finite")
    values, columns = torch.linalg.eigh((matrices + matrices.mT) / 2)
    order = values.abs().argsort(dim=-1, descending=True, stable=True)
    vectors = columns.mT.gather(-2, order[..., None].expand_as(columns))
    return values.gather(-1, order), vectors


def _require_width(vectors: Tensor, tensor: BilinearTensor) -> None:
    if vectors.shape[-1] != tensor.d_in:
        raise ValueError(
            f"`parts` reads a space of {vectors.shape[-1]} dimensions, the tensor one of "
            f"{tensor.d_in}"
        )


def _error(found: Reconstruction) -> Float[Tensor, ""]:
    rebuilt = found.to_tensor().to(torch.float64)
    return distance(found.tensor.to(torch.float64), rebuilt, True).to(found.eigenvalues.dtype)


def _cast(found: Reconstruction, like: BilinearTensor) -> Reconstruction:
    dtype = like.out.dtype
    return replace(
        found,
        tensor=like,
        directions=found.directions.to(dtype),
        duals=found.duals.to(dtype),
        eigenvalues=found.eigenvalues.to(dtype),
        eigenvectors=found.eigenvectors.to(dtype),
        missing=found.missing.to(dtype),
        error=found.error.to(dtype),
    )
