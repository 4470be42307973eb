"""The eigenpairs of largest |lambda| by a block Krylov method with full reorthogonalisation.

Rayleigh-Ritz on the span of X, QX, Q^2 X, ... (Golub and Van Loan, Matrix Computations, 10.3.6;
Parlett, The Symmetric Eigenvalue Problem, ch. 13). Both ends of the spectrum are found at once.
A block at least as wide as the number of wanted pairs finds every copy of a repeated eigenvalue
that can be among them.

What is certified: r = |Q v - lambda v| is computed, so Q has an eigenvalue within r of lambda.
That no larger one was missed is not shown by residuals; the result of `eigendecompose` shows it by
norm accounting where that is possible (`certified`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

STEPS = 8  # products that are wanted where the eigenvalues fall off, to a tolerance of 1e-5

Product = Callable[[Sequence[int], Tensor], Tensor]
"""(rows, vectors [row, block, d]) to the product of each row's matrix with its block."""


@dataclass(frozen=True, eq=False)
class RitzPairs:
    """Approximate eigenpairs of several symmetric matrices, by |value|."""

    values: Float[Tensor, "row pair"]
    vectors: Float[Tensor, "row pair d"]
    """Orthonormal rows; as many pairs as a block has vectors."""
    residuals: Float[Tensor, "row pair"]
    """|Q v - value v|."""
    converged: Bool[Tensor, " row"]
    """Whether the wanted pairs meet the tolerance."""
    vectors_used: int
    """Largest dimension of a searched subspace."""


def largest_eigenpairs(
    product: Product,
    start: Float[Tensor, "row block d"],
    k: int,
    *,
    tolerance: float,
    max_vectors: int,
    steps: int = STEPS,
    expect: Callable[[Sequence[int], int, int], None] = lambda rows, products, block: None,
) -> RitzPairs:
    """The k eigenpairs of largest |value| of several symmetric matrices.

    Args:
        start: first blocks, at least k wide, linearly independent.
        tolerance: bound on a residual in units of its own |value|.
        max_vectors: dimension of the subspace at which a matrix is given up; below d also one
            whose residuals fall too slowly to get there.
        steps: how many products are expected at first.
        expect: told before each product how many are expected, with blocks of which width.
    """
    rows, block, d = start.shape
    if not k <= block <= d:
        raise ValueError(f"the block must be between k = {k} and d = {d} wide, got {block}")
    search = _Search(start)
    found: dict[int, tuple[Tensor, Tensor, Tensor, bool]] = {}
    history: dict[int, list[float]] = {row: [] for row in range(rows)}
    active = list(history)
    while True:
        expect(active, steps, block)
        search.extend_image(product(active, search.newest))
        values, vectors, residuals = search.ritz_pairs(min(block, search.size))
        excess = _excess(values, residuals, k, tolerance).tolist()
        room = min(max_vectors, d) - search.size
        kept, left = [], [1]
        for position, row in enumerate(active):
            history[row].append(excess[position])
            needed = _steps_left(history[row], steps)
            hopeless = len(history[row]) > 4 and needed * block / 2 > room and max_vectors < d
            if excess[position] <= 1 or room <= 0 or hopeless:
                pairs = values[position], vectors[position], residuals[position]
                found[row] = *pairs, excess[position] <= 1
            else:
                kept.append(position)
                left.append(needed)
        if not kept:
            break
        if len(kept) < len(active):
            active = [active[position] for position in kept]
            search.keep(torch.as_tensor(kept, device=start.device))
        steps = max(left)
        search.grow(min(block, room, d - search.size))
    ordered = [found[row] for row in range(rows)]
    return RitzPairs(
        values=torch.stack([pairs[0] for pairs in ordered]),
        vectors=torch.stack([pairs[1] for pairs in ordered]),
        residuals=torch.stack([pairs[2] for pairs in ordered]),
        converged=torch.tensor([pairs[3] for pairs in ordered]),
        vectors_used=search.size,
    )


class _Search:
    """An orthonormal basis per row (as rows), its image under Q, and the projected Q."""

    def __init__(self, start: Tensor):
        self.basis = _orthonormal_rows(start)
        self.width = start.shape[1]
        self.image = self.basis[:, :0]
        self.projected = start.new_zeros(len(start), 0, 0)

    @property
    def size(self) -> int:
        return self.basis.shape[1]

    @property
    def newest(self) -> Tensor:
        return self.basis[:, self.image.shape[1] :]

    def extend_image(self, image: Tensor) -> None:
        before = self.image.shape[1]
        self.image = torch.cat([self.image, image], dim=1)
        columns = self.basis @ image.mT
        corner = (columns[:, before:] + columns[:, before:].mT) / 2
        top = torch.cat([self.projected, columns[:, :before]], dim=2)
        bottom = torch.cat([columns[:, :before].mT, corner], dim=2)
        self.projected = torch.cat([top, bottom], dim=1)

    def ritz_pairs(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        values, coordinates = torch.linalg.eigh(self.projected)
        order = values.abs().argsort(dim=-1, descending=True, stable=True)[:, :count]
        values = values.gather(-1, order)
        coordinates = coordinates.gather(-1, order[:, None].expand(-1, self.size, -1)).mT
        vectors = coordinates @ self.basis
        residuals = (coordinates @ self.image - values[..., None] * vectors).norm(dim=-1)
        return values, vectors, residuals

    def grow(self, count: int) -> None:
        """The next block: the newest image, made orthogonal to all that came before.

        Twice is enough, but where the image lies in the basis already (an invariant subspace) the
        second pass makes new directions of rounding errors, which a third makes orthogonal.
        """
        block = self.image[:, -self.width :]
        for _ in range(3):
            block = _orthonormal_rows(block - (block @ self.basis.mT) @ self.basis)
        self.width = count
        self.basis = torch.cat([self.basis, block[:, :count]], dim=1)

    def keep(self, rows: Tensor) -> None:
        self.basis, self.image = self.basis[rows], self.image[rows]
        self.projected = self.projected[rows]


def _orthonormal_rows(rows: Tensor) -> Tensor:
    return torch.linalg.qr(rows.mT).Q.mT


def _excess(values: Tensor, residuals: Tensor, k: int, tolerance: float) -> Tensor:
    """The worst of the k residuals in units of what is allowed; at most 1 is converged.

    A residual at the rounding error of the largest eigenvalue cannot fall any further: it meets
    every tolerance (eigenvalues that are zero would meet none).
    """
    rounding = 8 * torch.finfo(values.dtype).eps * values[:, :1].abs()
    allowed = torch.maximum(tolerance * values[:, :k].abs(), rounding)
    smallest = torch.finfo(values.dtype).tiny
    return (residuals[:, :k] / allowed.clamp_min(smallest)).amax(-1)


def _steps_left(history: list[float], before: int) -> int:
    """How many more steps the worst row is expected to need, from the last two."""
    if len(history) < 3:
        return before
    rate = (max(history[-3], 1e-300) / max(history[-1], 1e-300)) ** 0.5
    if rate <= 1.0:
        return 10**6
    return math.ceil(math.log(max(history[-1], 1.0)) / math.log(rate))
