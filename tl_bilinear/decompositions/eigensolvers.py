"""Eigenpairs of many Q(u) of one tensor: by eigh, on a smaller core, or by the Krylov method."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_bilinear.decompositions.interaction_operator import (
    BLOCK,
    FEW,
    InteractionOperator,
    interaction_matrix,
)
from tl_bilinear.decompositions.krylov import STEPS, RitzPairs, largest_eigenpairs
from tl_bilinear.tensor import BilinearTensor

EIGH = 14  # eigh of size d costs about as much as EIGH d^3 operations of a matrix product
STEP = 2e7  # what a step costs beside its product, in the same operations


@dataclass(frozen=True, eq=False)
class Eigenproblem:
    """Q(u_n) - a_n I for directions given by their weights on the rank axis."""

    tensor: BilinearTensor
    weights: Float[Tensor, "direction rank"]
    """u @ out, in the dtype of the computation."""
    gauge: str
    work_bytes: int
    differentiable: bool

    @cached_property
    def shift(self) -> Float[Tensor, " direction"]:
        """a = tr Q / d in the traceless gauge, else zero."""
        if self.gauge == "none":
            return self.weights.new_zeros(len(self.weights))
        legs = self.tensor.left, self.tensor.right
        blocks = [
            torch.mul(*(leg[:, start : start + BLOCK].to(self.weights.dtype) for leg in legs)).sum(
                0
            )
            for start in range(0, self.tensor.rank, BLOCK)
        ]
        return self.weights @ torch.cat(blocks) / self.tensor.d_in

    def matrix(self, row: int) -> Float[Tensor, "d d"]:
        """Q(u) - a I of one direction."""
        matrix = interaction_matrix(self.tensor, self.weights[row])
        if self.gauge == "none":
            return matrix
        identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return matrix - self.shift[row] * identity

    def chunks(self, numbers: int) -> Iterator[range]:
        """Directions in chunks whose work, `numbers` per direction, keeps to `work_bytes`."""
        size = max(1, self.work_bytes // (numbers * self.weights.element_size()))
        for start in range(0, len(self.weights), size):
            yield range(start, min(start + size, len(self.weights)))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Eigenpairs per direction, with what is known of their accuracy and of the rest."""

    values: Float[Tensor, "direction k"]
    vectors: Float[Tensor, "direction k d"]
    residuals: Float[Tensor, "direction k"]
    by_eigh: Bool[Tensor, " direction"]
    dropped: Float[Tensor, " direction"]
    """Squared Frobenius norm of the rest; NaN where it was not computed."""
    method: str

    def named(self, method: str) -> "Pairs":
        return replace(self, method=method)

    def left_out(self, problem: Eigenproblem) -> Float[Tensor, " direction"]:
        """The squared norms of the rest, all of them."""
        missing = self.dropped.isnan().nonzero()[:, 0]
        left_out = self.dropped.double()
        if len(missing) * problem.tensor.d_in > 3 * problem.tensor.rank:
            whole = _squared_norms(problem, missing)
            rest = whole - self.values[missing].double().square().sum(-1)
            sure = rest > 1e-6 * whole  # else the difference has lost its digits
            left_out[missing[sure]] = rest[sure]
            missing = missing[~sure]
        for row in missing.tolist():
            left_out[row] = _rest(problem.matrix(row), self.values[row], self.vectors[row])
        return left_out


def solve(problem: Eigenproblem, k: int) -> Pairs:
    """All eigenvalues by eigh, the k pairs of largest |lambda|."""
    tensor, d = problem.tensor, problem.tensor.d_in
    if problem.differentiable or 2 * _core_size(tensor) > d:
        rows = range(len(problem.weights))
        return _joined(problem, [_eigh(problem.matrix(row), k) for row in rows], k, "eigh")
    return _solve_core(problem, k)


def solve_largest(problem: Eigenproblem, k: int, tolerance: float, *, must: bool) -> Pairs:
    """The k pairs of largest |lambda| by the Krylov method; by eigh where that is no help."""
    d = problem.tensor.d_in
    block = min(d, max(8, 4 * math.ceil((k + 3) / 4)))
    limit = d if must else max(4 * block, d // 4)
    if not must and (2 * limit > d or not _promises(problem, k, block)):
        return solve(problem, k)
    start = torch.randn(
        1, block, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    solved, failed = [], 0
    for rows in problem.chunks(2 * (2 * limit * d + d**2)):
        chunk = replace(
            problem, weights=problem.weights[rows.start : rows.stop]
        )  # its shift follows from its weights
        pairs, misses = _krylov(chunk, start.to(problem.weights.device), k, tolerance, limit)
        solved.append(pairs)
        failed += misses
    method = "krylov"
    if failed:
        which = "" if failed == len(problem.weights) else f" for {failed} of {len(problem.weights)}"
        reason = f"Krylov did not converge to {tolerance:.0e} in {limit} vectors: no gap"
        method = f"eigh{which} ({reason})" if not which else f"krylov, eigh{which} ({reason})"
    return _joined(problem, solved, k, method)


def _eigh(matrix: Float[Tensor, "d d"], k: int) -> Pairs:
    """The pairs of one direction."""
    values, columns = torch.linalg.eigh(matrix)
    order = values.abs().argsort(descending=True, stable=True)
    kept, rest = order[:k], order[k:]
    backward = len(matrix) * torch.finfo(values.dtype).eps * values[order[:1]].abs()
    return Pairs(
        values=values[kept][None],
        vectors=columns.mT[kept][None],
        residuals=backward.detach().expand(1, len(kept)),
        by_eigh=torch.ones(1, dtype=torch.bool, device=values.device),
        dropped=values[rest].detach().double().square().sum(-1, keepdim=True),
        method="eigh",
    )


def _core_size(tensor: BilinearTensor) -> int:
    return tensor.rank if tensor.left is tensor.right else 2 * tensor.rank


def _solve_core(problem: Eigenproblem, k: int) -> Pairs:
    """Q(u) = P C(u) P^T with P from one QR of the factors, of a size below d."""
    tensor, d = problem.tensor, problem.tensor.d_in
    same = tensor.left is tensor.right
    legs = tensor.left if same else torch.cat([tensor.left, tensor.right], dim=1)
    size = legs.shape[1]
    # The rest of the basis is wanted where eigenvectors of zero (of -a in a gauge) may be kept.
    complete = k > size or problem.gauge != "none"
    basis, triangle = torch.linalg.qr(
        legs.to(problem.weights.dtype), mode="complete" if complete else "reduced"
    )
    left, right = triangle[:size, : tensor.rank], triangle[:size, -tensor.rank :]
    core = BilinearTensor(left, right, tensor.out.to(left.dtype))
    null = basis[:, size:].T
    solved = []
    for rows in problem.chunks(8 * size**2 + 2 * d * d):
        for row in rows:
            matrix = interaction_matrix(core, problem.weights[row])
            values, columns = torch.linalg.eigh(matrix)
            values = torch.cat([values, values.new_zeros(d - size)]) - problem.shift[row]
            order = values.abs().argsort(descending=True, stable=True)
            vectors = torch.empty(k, d, dtype=values.dtype, device=values.device)
            inside = order[:k] < size
            vectors[inside] = columns.mT[order[:k][inside]] @ basis[:, :size].T
            vectors[~inside] = null[order[:k][~inside] - size]
            values = values[order]
            solved.append(
                Pairs(
                    values=values[None, :k],
                    vectors=vectors[None],
                    residuals=(d * torch.finfo(values.dtype).eps * values[:1].abs()).expand(1, k),
                    by_eigh=torch.ones(1, dtype=torch.bool, device=values.device),
                    dropped=values[None, k:].double().square().sum(-1),
                    method="eigh",
                )
            )
    return _joined(problem, solved, k, f"eigh of a core of size {size} (rank {tensor.rank})")


def _promises(problem: Eigenproblem, k: int, block: int) -> bool:
    """Whether the Krylov method is expected to cost clearly less than eigh."""
    tensor, d, size = problem.tensor, problem.tensor.d_in, _core_size(problem.tensor)
    n = len(problem.weights)
    by_eigh = n * (2.0 * d**2 * tensor.rank + EIGH * d**3)
    if 2 * size <= d:
        by_eigh = 4.0 * d * size**2 + n * (2.0 * size**2 * tensor.rank + EIGH * size**3)
        by_eigh += n * 2.0 * d * size * k
    operator = InteractionOperator(tensor, problem.weights, problem.shift)
    factored = STEPS * operator.factored_cost(n * block)
    built = n * (operator.build_cost + STEPS * 2.0 * d**2 * (block + FEW))
    return min(factored, built) + n * STEPS * STEP < 0.7 * by_eigh


def _krylov(
    problem: Eigenproblem, start: Tensor, k: int, tolerance: float, limit: int
) -> tuple[Pairs, int]:
    """Pairs of one chunk of directions, and how many of them eigh had to find.

    The search for a result in float64 starts in float32, where products cost half; the pairs found
    are improved, and their residuals computed, in float64.
    """
    weights, shift = problem.weights, problem.shift
    start, steps = start.to(weights.dtype).expand(len(weights), -1, -1), STEPS
    searched = torch.ones(len(weights), dtype=torch.bool)
    if weights.dtype == torch.float64:
        quick = InteractionOperator(problem.tensor, weights.float(), shift.float())
        found = _largest(quick, start.float(), k, max(tolerance, 1e-5), limit, STEPS)
        searched, start = found.converged | (limit >= problem.tensor.d_in), found.vectors.double()
        steps = 1 + math.ceil(math.log10(max(1.0, 1e-5 / tolerance)))  # tenfold a step
    operator = InteractionOperator(problem.tensor, weights, shift)
    rows = searched.nonzero()[:, 0].tolist()
    solved: dict[int, Pairs] = {}
    if rows:
        part = InteractionOperator(problem.tensor, weights[rows], shift[rows])
        found = _largest(part, start[rows], k, tolerance, limit, steps)
        for position, row in enumerate(rows):
            if row_pairs := _accepted(found, position, k, part.matrices.get(position)):
                solved[row] = row_pairs
            elif position in part.matrices:
                operator.matrices[row] = part.matrices[position]
    failed = [row for row in range(len(weights)) if row not in solved]
    for row in failed:
        solved[row] = _eigh(operator.matrix(row), k)
        del operator.matrices[row]
    return _joined(problem, [solved[row] for row in range(len(weights))], k, ""), len(failed)


def _largest(
    operator: InteractionOperator,
    start: Tensor,
    k: int,
    tolerance: float,
    limit: int,
    steps: int,
) -> RitzPairs:
    return largest_eigenpairs(
        operator,
        start,
        k,
        tolerance=tolerance,
        max_vectors=limit,
        steps=steps,
        expect=operator.expect,
    )


def _accepted(found: RitzPairs, position: int, k: int, matrix: Tensor | None) -> Pairs | None:
    if not found.converged[position]:
        return None
    values, vectors = found.values[position, :k], found.vectors[position, :k]
    dropped = torch.tensor(float("nan")) if matrix is None else _rest(matrix, values, vectors)
    return Pairs(
        values=values[None],
        vectors=vectors[None],
        residuals=found.residuals[position, :k][None],
        by_eigh=torch.zeros(1, dtype=torch.bool, device=values.device),
        dropped=dropped.double().reshape(1).to(values.device),
        method="krylov",
    )


def _rest(matrix: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    """|Q - sum lambda v v^T|_F^2, without a difference of squares."""
    return torch.addmm(matrix, vectors.mT * values, vectors, alpha=-1).double().square().sum()


def _squared_norms(problem: Eigenproblem, rows: Tensor) -> Tensor:
    """|Q - a I|_F^2 = w^T K w - a^2 d by the Gram matrix K of the rank axis, a block at a time."""
    tensor = problem.tensor.to(torch.float64)
    weights = problem.weights[rows].double()
    total = -problem.shift[rows].double().square() * tensor.d_in
    step = max(1, problem.work_bytes // (32 * tensor.rank))
    for start in range(0, tensor.rank, step):
        part = slice(start, start + step)
        block = replace(
            tensor, left=tensor.left[:, part], right=tensor.right[:, part], out=tensor.out[:, part]
        )
        total = total + ((weights[:, part] @ block.input_gram(tensor)) * weights).sum(-1)
    return total


def _joined(problem: Eigenproblem, solved: list[Pairs], k: int, method: str) -> Pairs:
    if not solved:
        empty, d = problem.weights.new_zeros(0, k), problem.tensor.d_in
        none = torch.zeros(0, dtype=torch.bool, device=empty.device)
        return Pairs(empty, empty.new_zeros(0, k, d), empty, none, empty.new_zeros(0), method)
    if len(solved) == 1:
        return solved[0].named(method)
    return Pairs(
        values=torch.cat([pairs.values for pairs in solved]),
        vectors=torch.cat([pairs.vectors for pairs in solved]),
        residuals=torch.cat([pairs.residuals for pairs in solved]),
        by_eigh=torch.cat([pairs.by_eigh for pairs in solved]),
        dropped=torch.cat([pairs.dropped for pairs in solved]),
        method=method,
    )
