"""Contrastive directions: what one set of texts uses and another does not, in any space.

Of the second moments F (forget) and R (retain) of some vectors the generalised eigenproblem

    F v = share (F + R + shrinkage s I) v,    s = tr(F + R) / d

finds the components, uncorrelated in both sets at once, in order of the share of their energy that
forgetting has: the pencil (F, R) of contrastive and linear discriminant analysis, in the form whose
eigenvalues lie between 0 and 1. Nothing here knows a model.

Two kinds of vector have moments. *Activations* y: an eigenvector reads y, and what it writes is its
dual. *Gradients* g of something by y: an eigenvector is a direction that y is moved along, and its
dual reads y. Either way components are taken out of y by an oblique projection, which leaves all
other components as they are.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Moments = Literal["activations", "gradients"]

SHRINKAGE = 1e-3


@dataclass(frozen=True, eq=False)
class ContrastiveDirections:
    """Components in order of the forget set's share; `readers @ writers.T` is the identity.

    Scale: in every component the energy of both sets and the shrinkage together is 1.
    """

    readers: Float[Tensor, "k d"]
    """Rows: the amplitude of component k in an activation y is `readers[k] . y`."""
    writers: Float[Tensor, "k d"]
    """Rows: what a unit of the amplitude adds to y."""
    shares: Float[Tensor, " k"]
    """Forget energy over forget, retain and shrinkage energy: 0 to 1, falling."""
    overlap: float
    """Cosine of the two moments, 0 to 1, in the space that the problem was solved in."""
    shrinkage: float
    moments: Moments

    @property
    def k(self) -> int:
        return len(self.shares)

    def truncate(self, k: int) -> "ContrastiveDirections":
        """The first k.

        Raises:
            ValueError: more than there are, or fewer than none.
        """
        if not 0 <= k <= self.k:
            raise ValueError(f"`k` must be between 0 and {self.k}, got {k}")
        return ContrastiveDirections(
            self.readers[:k],
            self.writers[:k],
            self.shares[:k],
            self.overlap,
            self.shrinkage,
            self.moments,
        )

    def amplitudes(self, y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch k"]:
        """How much of each component is in y."""
        return y @ self.readers.to(y).T

    def removed(self, y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """y without these components; O(k d) for each y."""
        return y - self.amplitudes(y) @ self.writers.to(y)

    def projection(self) -> Float[Tensor, "d d"]:
        """P with `y @ P == removed(y)`: to write the removal into a weight of [*, d]."""
        d = self.readers.shape[1]
        return torch.eye(d).to(self.readers) - self.readers.T @ self.writers


def second_moment(x: Float[Tensor, "*batch d"], *, centred: bool = False) -> Float[Tensor, "d d"]:
    """E[x x^T] in float64 over everything but the last axis, or the covariance (divided by n).

    Raises:
        ValueError: no vector at all.
    """
    rows = x.reshape(-1, x.shape[-1]).double()
    if not len(rows):
        raise ValueError("`x` holds no vectors: a second moment needs at least one")
    if centred:
        rows = rows - rows.mean(0)
    return rows.T @ rows / len(rows)


def moment_overlap(forget: Float[Tensor, "d d"], retain: Float[Tensor, "d d"]) -> float:
    """Cosine of two second moments, tr(F R) / (|F| |R|): 0 where they share no direction, 1 where
    they are proportional.

    Raises:
        ValueError: what `contrastive_directions` refuses, or one moment that is zero.
    """
    _require_moments(forget, retain)
    f, r = forget.double(), retain.double()
    norms = f.norm() * r.norm()
    if norms == 0:
        raise ValueError("a moment is zero and has no overlap with another: give vectors that vary")
    return float((f * r).sum() / norms)


def contrastive_directions(
    forget_moment: Float[Tensor, "d d"],
    retain_moment: Float[Tensor, "d d"],
    k: int,
    *,
    moments: Moments = "activations",
    whiten: Float[Tensor, "d d"] | None = None,
    shrinkage: float = SHRINKAGE,
) -> ContrastiveDirections:
    """The k components of largest forget share, by a Cholesky factor of F + R + shrinkage s I.

    The condition number of what is factored is at most 1 + d / shrinkage. O(d^3), in float64.

    Args:
        forget_moment, retain_moment: second moments, symmetric and without negative eigenvalue.
        moments: what they are moments of; see the module. It says which of the eigenvectors and
            their duals read and which write.
        whiten: the second moment T of all activations, forget and retain. The problem is then
            solved in y T^(-1/2), where each direction counts by how far activations go along it,
            not by the accident of its scale. It only acts through the shrinkage.
        shrinkage: in units of the mean eigenvalue of F + R: directions with less energy than it
            are not thought to be told apart. 0 is refused.

    Raises:
        ValueError: moments that are not square, of one size, symmetric, finite and free of
            negative eigenvalues, or both zero; `k` beyond 1 to d; a shrinkage that is not positive.
    """
    _require_moments(forget_moment, retain_moment, *(() if whiten is None else (whiten,)))
    d = len(forget_moment)
    if not 1 <= k <= d:
        raise ValueError(f"`k` must be between 1 and {d} (the moments' size), got {k}")
    if not 0 < shrinkage < float("inf"):
        raise ValueError(f"`shrinkage` is {shrinkage}: give a number above 0, as {SHRINKAGE}")
    if moments not in ("activations", "gradients"):
        raise ValueError(f'`moments` must be "activations" or "gradients", got {moments!r}')
    f, r = forget_moment.double(), retain_moment.double()
    # Vectors of the solved space are v_here = v @ into; those of the dual space v @ back.T.
    into, back = _whitening(whiten, moments, shrinkage, f)
    f, r = into.T @ f @ into, into.T @ r @ into
    scale = (f.trace() + r.trace()) / d
    if scale <= 0:
        raise ValueError("both moments are zero: give vectors that are not")
    overlap = moment_overlap(f, r) if f.any() and r.any() else 0.0
    total = f + r + shrinkage * scale * torch.eye(d).to(f)
    root = torch.linalg.cholesky(total)
    inner = torch.linalg.solve_triangular(root, f, upper=False)
    inner = torch.linalg.solve_triangular(root, inner.T, upper=False)
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    values, vectors = values.flip(0)[:k].clamp(0, 1), vectors.flip(1)[:, :k]
    eigenvectors = torch.linalg.solve_triangular(root.T, vectors, upper=True).T  # rows
    duals = (root @ vectors).T
    first, second = eigenvectors @ into.T, duals @ back
    signs = first.gather(1, first.abs().argmax(1, keepdim=True)).sign()
    first, second = first * signs, second * signs
    readers, writers = (first, second) if moments == "activations" else (second, first)
    return ContrastiveDirections(readers, writers, values, overlap, shrinkage, moments)


def _whitening(
    whiten: Tensor | None, moments: Moments, shrinkage: float, like: Tensor
) -> tuple[Tensor, Tensor]:
    """A symmetric matrix that takes the moments' vectors to the whitened space, and its inverse."""
    if whiten is None:
        same = torch.eye(len(like)).to(like)
        return same, same
    values, vectors = torch.linalg.eigh(whiten.double())
    if values[-1] <= 0:
        raise ValueError("`whiten` is zero: give the second moment of the activations")
    roots = values.clamp_min(0).add(shrinkage * values.mean()).sqrt()
    root, inverse = ((vectors * each) @ vectors.T for each in (roots, 1 / roots))
    # Activations shrink by the root, gradients grow by it.
    return (inverse, root) if moments == "activations" else (root, inverse)


def _require_moments(*moments: Tensor) -> None:
    shape = moments[0].shape
    for moment in moments:
        if moment.ndim != 2 or moment.shape != shape or shape[0] != shape[1] or not shape[0]:
            shapes = [tuple(each.shape) for each in moments]
            raise ValueError(f"second moments must be [d, d] and of one size, got shapes {shapes}")
        if not torch.isfinite(moment).all():
            raise ValueError("a second moment has entries that are not finite")
        largest = float(moment.detach().abs().max())
        if float((moment - moment.T).abs().max()) > 1e-4 * largest:
            raise ValueError(
                "a second moment is not symmetric: give E[x x^T], as second_moment does"
            )
        if float(torch.linalg.eigvalsh(moment.double())[0]) < -1e-4 * largest:
            raise ValueError(
                "a second moment has a negative eigenvalue: give E[x x^T], as second_moment does"
            )
