"""One input subspace shared by many output directions: leading eigenvectors of sum_c Q_c^2.

The subspace of k dimensions in which the squared rows of all interaction matrices are largest (the
Tucker subspace of tdooms/bilinear-decomposition's `0_decomposition`).
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
from tl_bilinear.decompositions.gram import (
    blocks,
    distance,
    inner_product,
    input_gram,
    slices_are_cheap,
)
from tl_bilinear.decompositions.spectrum import degenerate_groups
from tl_bilinear.tensor import BilinearTensor

_DIRECTIONS_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class SharedSubspace:
    """An orthonormal basis of input space, in falling order of what the directions share in it."""

    tensor: BilinearTensor
    """u_c . B(x) for every direction c: what the subspace is shared by."""
    basis: Float[Tensor, "k d_in"]
    """Orthonormal rows; the entry of largest magnitude is positive."""
    eigenvalues: Float[Tensor, " k"]
    """Of sum_c Q_c^2: what each basis vector carries."""
    completeness: Float[Tensor, " directions"]
    """|P Q_c P|^2 / |Q_c|^2 for each direction: 1 where the subspace holds all of Q_c."""
    error: Float[Tensor, ""]
    """Root of sum_c |Q_c - P Q_c P|^2."""

    @property
    def core(self) -> BilinearTensor:
        """The directions' tensor in coordinates of the basis."""
        return self.tensor.change_basis(self.basis.T)

    def to_tensor(self) -> BilinearTensor:
        """One output per direction, both inputs projected on the subspace."""
        return self.core.change_basis(self.basis)

    def truncate(self, k: int) -> "SharedSubspace":
        """The k leading basis vectors; O(directions rank k^2) for what they hold."""
        require_count(k, len(self.basis), "k", "the basis vectors kept here")
        if k == len(self.basis):
            return self
        return _measured(replace(self, basis=self.basis[:k], eigenvalues=self.eigenvalues[:k]))

    def degenerate_groups(self, rtol: float = 1e-6) -> tuple[tuple[int, ...], ...]:
        """Indices of equal eigenvalues: their vectors are arbitrary, their span is not."""
        return degenerate_groups(self.eigenvalues, rtol)


@torch.no_grad()
def shared_subspace(
    tensor: BilinearTensor,
    u: Float[Tensor, "directions d_out"] | None = None,
    k: int | None = None,
) -> SharedSubspace:
    """Leading eigenvectors of sum_c Q(u_c)^2, in float64.

    O(directions (rank d^2 + d^3)) for few directions, O(rank^2 (d + directions)) for many.

    Args:
        u: rows; they count as long as they are. None takes every output.
        k: dimensions of the subspace; None keeps d_in.

    Raises:
        ValueError: wrong or no directions, `k` out of range, numbers that are not finite, a
            tensor of rank 0, or legs that read different spaces.
    """
    require_sound(tensor)
    d_in = tensor.d_in
    whole = tensor.to(torch.float64)
    if u is not None:
        require_directions(u, tensor, "u")
        whole = whole.contract_out(torch.atleast_2d(u).to(whole.out))
    if k is not None:
        require_count(k, d_in, "k", "d_in")
    values, columns = torch.linalg.eigh(input_gram(whole))
    values, rows = values.flip(0).clamp_min(0), columns.T.flip(0)
    rows = rows * torch.where(rows.gather(1, rows.abs().argmax(1, keepdim=True)) < 0, -1.0, 1.0)
    kept = slice(0, d_in if k is None else k)
    zero = values.new_zeros(())
    found = SharedSubspace(whole, rows[kept], values[kept], whole.out.new_ones(whole.d_out), zero)
    found = found if found.basis.shape[0] == d_in else _measured(found)
    dtype = tensor.out.dtype
    return replace(
        found,
        tensor=whole.to(dtype),
        basis=found.basis.to(dtype),
        eigenvalues=found.eigenvalues.to(dtype),
        completeness=found.completeness.to(dtype),
        error=found.error.to(dtype),
    )


def _measured(found: SharedSubspace) -> SharedSubspace:
    """With what the basis holds of each direction, and the error of all."""
    whole, dtype = found.tensor.to(torch.float64), found.tensor.out.dtype
    core = whole.change_basis(found.basis.T.double())
    held, sizes = _squared_norms(core), _squared_norms(whole)
    share = torch.where(sizes > 0, held / sizes.clamp_min(torch.finfo(sizes.dtype).tiny), 1.0)
    if slices_are_cheap(whole):
        error = distance(whole, core.change_basis(found.basis.double()), True)
    else:
        error = inner_product(whole, whole, True) - inner_product(core, core, True)
        error = error.clamp_min(0).sqrt()
    return replace(found, completeness=share.to(dtype), error=error.to(dtype))


def _squared_norms(tensor: BilinearTensor) -> Float[Tensor, " d_out"]:
    """|Q_c|^2 of every output, a few at a time. O(d_out rank d^2)."""
    parts = []
    for part in blocks(tensor.d_out, _DIRECTIONS_AT_ONCE):
        some = replace(tensor, out=tensor.out[part])
        identity = torch.eye(some.d_out).to(some.out)
        parts.append(some.interaction_matrix(identity).square().sum((-2, -1)))
    return torch.cat(parts)
