"""Symmetric CP decomposition: a tensor as few squares, B(x) ~ sum_r w_r o_r (a_r . x)^2.

One neuron of a bilinear MLP is a product of two readings, and ab = ((a + b)^2 - (a - b)^2) / 4
makes it two squares: `pair_squares` is the MLP's own exact symmetric CP. `cp_decompose` looks for
fewer (alternating least squares on the factors: `cp_fit`; sparse atoms: the 2026 additions to
tdooms/bilinear-decomposition).

    C = tlb.cp_decompose(B, rank=8)
    C.atoms, C.outputs, C.weights, C.error, C.report.converged
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.decompositions.arguments import require_count, require_sound
from tl_bilinear.decompositions.compression import compress, expand
from tl_bilinear.decompositions.cp_fit import fit, fit_sparse
from tl_bilinear.decompositions.gram import distance, inner_product
from tl_bilinear.tensor import BilinearTensor


@dataclass(frozen=True)
class Start:
    """How one start ended."""

    name: str
    """"pairs" (the heaviest pair squares of the tensor) or "random 0", "random 1", ..."""
    loss: float
    """|Bs - CP|^2 / 2 where it stopped, before any penalty."""
    sweeps: int
    converged: bool


@dataclass(frozen=True)
class CPReport:
    """How a fit came about."""

    objective: str
    """What was minimised."""
    losses: tuple[float, ...]
    """The objective before the first sweep and after every sweep of the start that won; it never
    rises. With a penalty, these are the penalised sweeps, which begin at the unpenalised winner."""
    starts: tuple[Start, ...]
    winner: int
    """Index into `starts`."""
    converged: bool
    """Whether the sweeps of `losses` ended by the tolerance rather than by their number."""


@dataclass(frozen=True, eq=False)
class CPDecomposition:
    """Squares of input directions, each written along an output direction."""

    tensor: BilinearTensor
    """What was decomposed."""
    atoms: Float[Tensor, "rank d_in"]
    """a_r, rows of norm one (zero for an atom that a penalty switched off); the entry of largest
    magnitude is positive."""
    outputs: Float[Tensor, "rank d_out"]
    """o_r, rows of norm one (or zero)."""
    weights: Float[Tensor, " rank"]
    """w_r >= 0; in falling order when first computed."""
    error: Float[Tensor, ""]
    """Frobenius norm of (symmetric part of the tensor) - (this)."""
    report: CPReport | None
    """None for `pair_squares`, which is an identity and no fit."""

    def contributions(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch rank"]:
        """w_r (a_r . x)^2: how far each atom moves the output along o_r."""
        return self.weights * (x @ self.atoms.T) ** 2

    def to_tensor(self) -> BilinearTensor:
        """The sum of squares as a tensor with left = right."""
        legs = self.atoms.T
        return BilinearTensor(legs, legs, (self.weights[:, None] * self.outputs).T)

    def truncate(self, k: int) -> "CPDecomposition":
        """The first k atoms with outputs solved anew, by least squares; the error never falls.

        (Atoms are not orthogonal: with their old outputs, dropping one could even help.)
        """
        require_count(k, len(self.atoms), "k", "the atoms kept here")
        if k == len(self.atoms):
            return self
        return _solved(self.tensor, self.atoms[:k], self.report)

    def degenerate_groups(self, cosine: float = 1 - 1e-6) -> tuple[tuple[int, ...], ...]:
        """Atoms that write along one line, or read along one: single squares mean nothing there.

        Squares that share an output direction are one quadratic form, and that has infinitely many
        decompositions into as many squares: only the span of the atoms is determined. Squares of
        one input direction share their outputs: only the sum is.
        """
        near = (self.outputs @ self.outputs.T).abs() >= cosine
        near |= (self.atoms @ self.atoms.T).abs() >= cosine
        groups, seen = [], set()
        for index in range(len(near)):
            if index in seen:
                continue
            group, frontier = {index}, {index}
            while frontier:
                reached = near[list(frontier)].any(0).nonzero().flatten().tolist()
                frontier = set(reached) - group
                group |= frontier
            seen |= group
            if len(group) > 1:
                groups.append(tuple(sorted(group)))
        return tuple(groups)

    def subspaces(self, cosine: float = 1 - 1e-6) -> tuple[Float[Tensor, "n d_in"], ...]:
        """An orthonormal basis (rows) of the span of the atoms of every degenerate group."""
        found = []
        for group in self.degenerate_groups(cosine):
            _, values, rows = torch.linalg.svd(self.atoms[list(group)], full_matrices=False)
            found.append(rows[values > 1e-6 * values[0]])
        return tuple(found)


@torch.no_grad()
def pair_squares(tensor: BilinearTensor) -> CPDecomposition:
    """The tensor's own exact symmetric CP, two squares for each neuron. O(rank d).

    ab = ((a + b)^2 - (a - b)^2) / 4, with both readings first scaled to one norm: the squares are
    then the eigenvectors of the neuron's own interaction matrix, orthogonal to each other.

    Raises:
        ValueError: rank 0, numbers that are not finite, or legs that read different spaces.
    """
    require_sound(tensor)
    _ = tensor.d_in
    left, right = tensor.left.double(), tensor.right.double()
    sizes = left.norm(dim=0), right.norm(dim=0)
    tiny = torch.finfo(left.dtype).tiny
    left, right = left / sizes[0].clamp_min(tiny), right / sizes[1].clamp_min(tiny)
    outputs = tensor.out.double() * (sizes[0] * sizes[1]) / 4
    atoms = torch.cat([left + right, left - right], 1)
    outputs = torch.cat([outputs, -outputs], 1)
    zero = torch.zeros((), dtype=torch.float64, device=left.device)
    return _named(tensor, atoms, outputs, zero, None, reorder=True)


@torch.no_grad()
def cp_decompose(
    tensor: BilinearTensor,
    rank: int,
    *,
    l1: float = 0.0,
    restarts: int = 4,
    from_pairs: bool = True,
    sweeps: int = 500,
    tol: float = 1e-6,
    seed: int = 0,
) -> CPDecomposition:
    """`rank` squares nearest to the tensor's symmetric part. O(rank_B rank d) a sweep, in float64.

    The loss is not convex: the best of several starts is returned, with the report of all.

    Args:
        rank: number of squares; 2 * tensor.rank always suffice (`pair_squares`).
        l1: if positive, the winner goes on to minimise |Bs - sum_r c_r (x) a_r (x) a_r|^2 / 2
            + l1 sum_ri |a_ri| over |c_r| <= 1, which makes atoms sparse (in the tensor's own basis:
            change that first); the outputs are then solved anew by least squares, unpenalised.
        restarts: number of random starts.
        from_pairs: also start from the heaviest pair squares.
        sweeps: most sweeps per start.
        tol: a start has converged when three sweeps running each lower the objective by no more
            than this fraction of it (or by rounding).
        seed: of the random starts.

    Raises:
        ValueError: a rank, number of starts or of sweeps below 1, a negative `l1` or `tol`, a
            tensor of rank 0 or not finite, or legs that read different spaces.
    """
    require_sound(tensor)
    _ = tensor.d_in
    _require_settings(rank, l1, restarts, from_pairs, sweeps, tol)
    whole = tensor.to(torch.float64)
    small = compress(whole, symmetric=True)
    squared_norm = float(inner_product(small.core, small.core, True).clamp_min(0))
    names, fits = [], []
    for name, atoms in _starts(small.core, rank, restarts, from_pairs, seed):
        names.append(name)
        fits.append(fit(small.core, squared_norm, atoms, sweeps, tol))
    winner = min(range(len(fits)), key=lambda index: fits[index].losses[-1])
    best, objective = fits[winner], "|Bs - sum_r c_r (x) a_r (x) a_r|^2 / 2"
    if l1:
        objective += f" + {l1:g} sum_ri |a_ri| over |c_r| <= 1"
        # Entries are what the penalty counts: in the tensor's own basis, not in the compressed one.
        lift = replace(
            best,
            atoms=expand(best.atoms.T, small.left).T,
            outputs=expand(best.outputs.T, small.out).T,
        )
        best = fit_sparse(whole, squared_norm, lift, l1, sweeps, tol)
    starts = tuple(
        Start(name, found.losses[-1], len(found.losses) - 1, found.converged)
        for name, found in zip(names, fits, strict=True)
    )
    report = CPReport(objective, best.losses, starts, winner, best.converged)
    if l1:
        return _solved(tensor, best.atoms.T, report, reorder=True)
    atoms, outputs = expand(best.atoms.T, small.left).T, expand(best.outputs.T, small.out).T
    squares = BilinearTensor(atoms, atoms, outputs)
    return _named(tensor, atoms, outputs, distance(whole, squares, True), report, reorder=True)


def _starts(core: BilinearTensor, rank: int, restarts: int, from_pairs: bool, seed: int):
    generator = torch.Generator().manual_seed(seed)
    if from_pairs:
        atoms = pair_squares(core).atoms[:rank].T
        missing = torch.randn(core.d_in, rank - atoms.shape[1], generator=generator).to(atoms)
        yield "pairs", torch.cat([atoms, missing / missing.norm(dim=0)], 1)
    for index in range(restarts):
        atoms = torch.randn(core.d_in, rank, generator=generator, dtype=torch.float64)
        yield f"random {index}", (atoms / atoms.norm(dim=0)).to(core.out.device)


def _solved(
    tensor: BilinearTensor,
    atoms: Float[Tensor, "rank d_in"],
    report: CPReport | None,
    reorder: bool = False,
) -> CPDecomposition:
    """Given atoms with the outputs that are best for them."""
    whole, legs = tensor.to(torch.float64), atoms.double().T
    values = whole(legs.T).T
    gram = (legs.T @ legs).square()
    outputs = values @ torch.linalg.pinv(gram, rtol=1e-13, hermitian=True)
    error = distance(whole, BilinearTensor(legs, legs, outputs), True)
    return _named(tensor, legs, outputs, error, report, reorder)


def _named(
    tensor: BilinearTensor,
    atoms: Float[Tensor, "d_in rank"],
    outputs: Float[Tensor, "d_out rank"],
    error: Float[Tensor, ""],
    report: CPReport | None,
    reorder: bool,
) -> CPDecomposition:
    """Rows of norm one, weights apart, signs by the rule."""
    tiny = torch.finfo(atoms.dtype).tiny
    atom_sizes, output_sizes = atoms.norm(dim=0), outputs.norm(dim=0)
    weights = atom_sizes**2 * output_sizes
    rows = (atoms / atom_sizes.clamp_min(tiny)).T
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    rows = rows * torch.where(largest < 0, -1.0, 1.0)
    written = (outputs / output_sizes.clamp_min(tiny)).T
    if reorder:
        order = weights.argsort(descending=True, stable=True)
        rows, written, weights = rows[order], written[order], weights[order]
    dtype = tensor.out.dtype
    return CPDecomposition(
        tensor, rows.to(dtype), written.to(dtype), weights.to(dtype), error.to(dtype), report
    )


def _require_settings(
    rank: int, l1: float, restarts: int, from_pairs: bool, sweeps: int, tol: float
) -> None:
    if rank < 1:
        raise ValueError(f"`rank` must be at least 1, got {rank}")
    if sweeps < 1:
        raise ValueError(f"`sweeps` must be at least 1, got {sweeps}")
    if restarts < 0 or restarts + from_pairs < 1:
        raise ValueError(
            f"there must be at least one start, got `restarts` {restarts} and `from_pairs` "
            f"{from_pairs}"
        )
    if not 0 <= l1 < float("inf") or not 0 <= tol < float("inf"):
        raise ValueError(f"`l1` and `tol` must be finite and not negative, got {l1} and {tol}")
