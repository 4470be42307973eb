"""Singular values and singular vectors of one unfolding of a tensor, by either route."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.decompositions.arguments import require_count
from tl_bilinear.decompositions.compression import expand
from tl_bilinear.decompositions.spectrum import degenerate_groups
from tl_bilinear.decompositions.unfolding_qr import unfolding_svd
from tl_bilinear.tensor import BilinearTensor

Leg = Literal["out", "left", "right"]

SMALL = 1e-3
"""Squaring is felt below this fraction of the largest singular value."""
_PROBES, _SAFETY = 3, 10


@dataclass(frozen=True, eq=False)
class ModeSpectrum:
    """Singular values of one unfolding, largest first, with their singular vectors."""

    singular_values: Float[Tensor, " k"]
    modes: Float[Tensor, "k size"]
    """Orthonormal rows; the entry of largest magnitude is positive."""
    available: int
    """How many there are: the rest of the space is never written to (or read)."""
    left_out: Float[Tensor, ""]
    """Root of the sum of squares of the singular values not kept."""
    bound: Float[Tensor, " k"] | None
    """|found - true| per singular value, where the Gram route found one below 1e-3 of the largest.

    From |Gram - its eigenpairs| measured on random probes (Halko, Martinsson and Tropp 2011, lemma
    4.1): holds with probability 0.999. None where no kept value is that small, or QR found them.
    """

    @property
    def truncated(self) -> bool:
        return len(self.singular_values) < self.available

    def truncate(self, k: int, name: str = "k") -> "ModeSpectrum":
        """The k largest."""
        require_count(k, len(self.singular_values), name, "the modes kept here")
        dropped = self.singular_values[k:].square().sum()
        return replace(
            self,
            singular_values=self.singular_values[:k],
            modes=self.modes[:k],
            left_out=(self.left_out**2 + dropped).sqrt(),
            bound=None if self.bound is None else self.bound[:k],
        )

    def degenerate_groups(self, rtol: float = 1e-6) -> tuple[tuple[int, ...], ...]:
        """Indices of equal singular values: their modes are arbitrary, their span is not."""
        return degenerate_groups(self.singular_values, rtol)

    def subspaces(self, rtol: float = 1e-6) -> tuple[Float[Tensor, "n size"], ...]:
        """An orthonormal basis (rows) of the span of every degenerate group."""
        return tuple(self.modes[list(group)] for group in self.degenerate_groups(rtol))


def spectrum_from_gram(
    gram: Float[Tensor, "n n"],
    core: BilinearTensor,
    leg: Leg,
    symmetric: bool,
    basis: Float[Tensor, "size n"] | None,
    k: int | None,
    name: str,
) -> ModeSpectrum:
    """The k leading modes of an unfolding from its Gram matrix. O(n^3)."""
    squares, columns = torch.linalg.eigh(gram)
    squares, columns = squares.flip(0), columns.flip(1)
    available = _available(core, leg, symmetric)
    found = _spectrum(squares[:available], columns.T, basis, available, k, name)
    values = found.singular_values
    if (values >= SMALL * values[0]).all():
        return found
    spread = _gram_error(squares, columns, core, leg, symmetric)
    low = (values**2 - spread).clamp_min(0).sqrt()
    high = (values**2 + spread).sqrt()
    return replace(found, bound=torch.maximum(values - low, high - values))


def spectrum_from_qr(
    core: BilinearTensor,
    leg: Leg,
    symmetric: bool,
    basis: Float[Tensor, "size n"] | None,
    k: int | None,
    name: str,
) -> ModeSpectrum:
    """The k leading modes of an unfolding from the QR of its streamed rows."""
    values, rows = unfolding_svd(core, leg, symmetric)
    available = _available(core, leg, symmetric)
    squares = values[:available].double().square()
    return _spectrum(squares, rows.double(), basis, available, k, name)


def _spectrum(
    squares: Tensor, rows: Tensor, basis: Tensor | None, available: int, k: int | None, name: str
) -> ModeSpectrum:
    if k is not None:
        require_count(k, available, name, "the modes that this tensor has")
    count = available if k is None else k
    modes = expand(rows[:count], None if basis is None else basis.double())
    largest = modes.gather(1, modes.abs().argmax(1, keepdim=True))
    squares = squares.clamp_min(0)
    return ModeSpectrum(
        singular_values=squares[:count].sqrt(),
        modes=modes * torch.where(largest < 0, -1.0, 1.0),
        available=available,
        left_out=squares[count:].sum().sqrt(),
        bound=None,
    )


def _available(core: BilinearTensor, leg: Leg, symmetric: bool) -> int:
    """Rows of the unfolding or its distinct columns, whichever are fewer."""
    sizes = {"out": core.d_out, "left": core.d_left, "right": core.d_right}
    own = sizes.pop(leg)
    columns = math.prod(sizes.values())
    if symmetric and leg == "out":
        columns = core.d_left * (core.d_left + 1) // 2
    return min(own, columns)


def _gram_error(
    squares: Tensor, columns: Tensor, core: BilinearTensor, leg: Leg, symmetric: bool
) -> Float[Tensor, ""]:
    """Bound on |V S V^T - G|_2, G applied to the probes in another order and in float64.

    Holds with probability 1 - 10^-3: |E| <= 10 sqrt(2 / pi) max |E probe|. O(rank d^2) per probe.
    """
    core = core.to(torch.float64)
    if symmetric:
        core = core.symmetrized()
    target = getattr(core, leg)
    first, second = (getattr(core, other) for other in ("out", "left", "right") if other != leg)
    generator = torch.Generator().manual_seed(0)
    worst = squares.new_zeros(())
    for _ in range(_PROBES):
        probe = torch.randn(len(target), generator=generator, dtype=torch.float64).to(target)
        unfolded = (first * (probe @ target)) @ second.T
        applied = target @ (first * (unfolded @ second)).sum(0)
        found = columns @ (squares * (columns.T @ probe))
        worst = torch.maximum(worst, (found - applied).norm())
    return _SAFETY * (2 / torch.pi) ** 0.5 * worst
