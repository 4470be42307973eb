"""What a spectrum looks like: shares, effective rank, kurtosis, outliers, degenerate groups."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Subspace:
    """Eigenvectors whose eigenvalues agree: only their span means something."""

    eigenvalue: float
    """Mean of the group."""
    indices: tuple[int, ...]
    """Places of the group's pairs among the kept ones."""
    basis: Float[Tensor, "size d_in"]
    """Orthonormal rows."""
    whole: bool
    """False where the group holds the smallest kept |lambda| and pairs were left out: more of
    the subspace may be among those."""

    def projector(self) -> Float[Tensor, "d_in d_in"]:
        """The orthogonal projection onto the subspace."""
        return self.basis.mT @ self.basis


def truncation_curve(
    values: Float[Tensor, "*batch k"], square: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch k"]:
    """Share of the squared Frobenius norm that the first 1, 2, ..., k values hold.

    Args:
        square: the squared norm of the whole matrix; where it is zero the share is one.
    """
    kept = values.square().cumsum(-1)
    whole = square[..., None]
    return torch.where(whole > 0, kept / torch.where(whole > 0, whole, 1.0), 1.0)


def effective_rank(values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """(L1 / L2)^2 = (sum |lambda|)^2 / sum lambda^2, 1 to k; zero for a zero matrix.

    As in 2410.08417 (appendix, sparseness of the spectrum) and its code.
    """
    square = values.square().sum(-1)
    return values.abs().sum(-1).square() / torch.where(square > 0, square, 1.0)


def kurtosis(values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """Pearson's fourth standardised moment of the eigenvalues' distribution, 3 for a Gaussian.

    A large symmetric random matrix has a semicircle and 2; few large modes on a bulk give more.
    NaN where all eigenvalues agree.
    """
    centred = values - values.mean(-1, keepdim=True)
    return centred.pow(4).mean(-1) / centred.square().mean(-1).square()


def outliers(
    values: Float[Tensor, "*batch k"], square: Float[Tensor, "*batch"], size: int
) -> Int[Tensor, "*batch"]:
    """How many of the first values stick out of a random bulk of the same norm.

    The null is Wigner's: a random symmetric matrix's eigenvalues fill a semicircle of radius
    2 rms(bulk), and its largest goes beyond by a relative `size^(-2/3)` in one of a hundred
    (Tracy and Widom 1996: the 0.99 quantile is 2.02 at beta = 1). The bulk is what is left once
    the outliers are taken out: they are counted again until their number stays.

    Args:
        values: by falling magnitude; all outliers must be among them.
        square: the squared norm of the whole matrix.
        size: of the matrix.
    """
    squares = values.double().square()
    taken = torch.nn.functional.pad(squares.cumsum(-1), (1, 0))  # by the first 0, 1, ..., k
    count = torch.zeros_like(square, dtype=torch.int64)
    for _ in range(values.shape[-1]):
        bulk = (square.double() - taken.gather(-1, count[..., None])[..., 0]).clamp_min(0)
        edge = 2 * (bulk / (size - count).clamp_min(1)).sqrt() * (1 + size ** (-2 / 3))
        found = (squares.sqrt() > edge[..., None]).sum(-1)
        if (found <= count).all():
            break
        count = torch.maximum(found, count)
    return count


def degenerate_groups(
    values: Float[Tensor, " k"], rtol: float = 1e-6, scale: float | None = None
) -> tuple[tuple[int, ...], ...]:
    """Indices of neighbours that lie within `rtol * scale`, in groups of two or more.

    Inside one only the span of the vectors means something. `scale` is the largest magnitude where
    it is None.
    """
    listed = values.tolist()
    scale = max(map(abs, listed), default=0.0) if scale is None else scale
    order = sorted(range(len(listed)), key=lambda index: listed[index])
    groups: list[list[int]] = []
    for index in order:
        if groups and listed[index] - listed[groups[-1][-1]] <= rtol * scale:
            groups[-1].append(index)
        else:
            groups.append([index])
    return tuple(sorted(tuple(sorted(group)) for group in groups if len(group) > 1))
