"""A tensor of low rank, in coordinates of the spaces that its factors span."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.tensor import BilinearTensor


@dataclass(frozen=True, eq=False)
class Compressed:
    """`B[o, i, j] = sum out[o, a] left[i, b] right[j, c] core[a, b, c]`, bases orthonormal."""

    core: BilinearTensor
    out: Float[Tensor, "d_out n_out"] | None
    """Columns span the factor; None is the identity: there was nothing to gain."""
    left: Float[Tensor, "d_left n_left"] | None
    right: Float[Tensor, "d_right n_right"] | None


def compress(tensor: BilinearTensor, symmetric: bool) -> Compressed:
    """QR of every factor that is taller than wide; both legs share one basis if `symmetric`.

    The nonzero spectrum of each unfolding is that of the core's, so that eigenproblems have the
    size of the rank where the rank is below d. O(rank^2 d); exact to rounding.
    """
    out, out_basis = _reduced(tensor.out)
    if not symmetric:
        left, left_basis = _reduced(tensor.left)
        right, right_basis = _reduced(tensor.right)
        return Compressed(
            BilinearTensor(left, right, out, shared_input=False), out_basis, left_basis, right_basis
        )
    legs, basis = _reduced(torch.cat([tensor.left, tensor.right], 1))
    left, right = legs[:, : tensor.rank], legs[:, tensor.rank :]
    return Compressed(BilinearTensor(left, right, out, shared_input=True), out_basis, basis, basis)


def expand(rows: Float[Tensor, "k n"], basis: Float[Tensor, "d n"] | None) -> Float[Tensor, "k d"]:
    """Rows in the core's coordinates, as rows in the tensor's own."""
    return rows if basis is None else rows @ basis.T


def _reduced(factor: Tensor) -> tuple[Tensor, Tensor | None]:
    if factor.shape[0] <= factor.shape[1]:
        return factor, None
    basis, triangle = torch.linalg.qr(factor)
    return triangle, basis
