"""What every pair of input features does to one output direction.

    I[i, j] = d_i^T Q(u) d_j
    u . B(sum_i z_i d_i) = sum_i I[i, i] z_i^2 + 2 sum_{i<j} I[i, j] z_i z_j

(2410.08417 section 3.1). I[i, i] is feature i's self-interaction, I[i, j] with i < j a cross
interaction, which counts twice. The table is streamed in blocks of its upper triangle: all
pairs are seen, the largest are kept, and none of it is held.

The matched baseline replaces Q(u) by R^T diag(lambda) R with the same eigenvalues and a random
orthogonal R (Haar): spectrum, norm and the features' own geometry stay, only the alignment of
eigenvectors with features goes. A Gaussian matrix of equal standard deviation, as in figure 27
of 2410.08417, would change the spectrum too.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_bilinear.decompositions.eigen import Gauge
from tl_bilinear.decompositions.largest import Largest
from tl_bilinear.tensor import BilinearTensor

BLOCK = 1024


@dataclass(frozen=True)
class Moments:
    """Of a set of interactions."""

    count: int
    mean: float
    std: float
    kurtosis: float
    """Fourth central moment over the squared variance: 3 for a normal distribution; nan where
    all are equal."""
    square_sum: float


@dataclass(frozen=True, eq=False)
class InteractionTable:
    """Interactions of all n features along one direction: statistics of all, the largest kept."""

    direction: Float[Tensor, " d_out"]
    self_values: Float[Tensor, " n"]
    """I[i, i] of every feature."""
    self_top: Int[Tensor, " k_self"]
    """The features of largest |I[i, i]|, descending."""
    cross_pairs: Int[Tensor, "k 2"]
    """The pairs i < j of largest |I[i, j]|, descending."""
    cross_values: Float[Tensor, " k"]
    """I[i, j] of these pairs; the pair adds 2 I[i, j] z_i z_j."""
    self_moments: Moments
    cross_moments: Moments
    gauge: Gauge

    @property
    def n_features(self) -> int:
        return len(self.self_values)

    @property
    def norm(self) -> float:
        """Frobenius norm of the whole table, each cross interaction counted twice."""
        return (self.self_moments.square_sum + 2 * self.cross_moments.square_sum) ** 0.5

    @property
    def self_share(self) -> float:
        """Share of the squared norm that lies on the diagonal."""
        return self.self_moments.square_sum / max(self.norm**2, torch.finfo(torch.float64).tiny)

    @property
    def error(self) -> float:
        """Frobenius norm of the interactions that were not kept."""
        kept = self.self_values[self.self_top].double().square().sum()
        kept = kept + 2 * self.cross_values.double().square().sum()
        return max(0.0, self.norm**2 - float(kept)) ** 0.5

    def top(self, k: int) -> tuple[tuple[int, int, float], ...]:
        """The k largest of the kept self and cross interactions: (i, j, I[i, j])."""
        rows = [(i, i, float(self.self_values[i])) for i in self.self_top.tolist()]
        pairs, values = self.cross_pairs.tolist(), self.cross_values.tolist()
        rows += [(i, j, value) for (i, j), value in zip(pairs, values, strict=True)]
        return tuple(sorted(rows, key=lambda row: -abs(row[2]))[:k])

    def truncate(self, k: int) -> "InteractionTable":
        """The k largest self and the k largest cross interactions; the statistics stay."""
        kept = max(len(self.self_top), len(self.cross_values))
        if not 1 <= k <= kept:
            raise ValueError(f"`k` must be between 1 and the {kept} kept here, got {k}")
        return replace(
            self,
            self_top=self.self_top[:k],
            cross_pairs=self.cross_pairs[:k],
            cross_values=self.cross_values[:k],
        )

    def to_tensor(self) -> BilinearTensor:
        """The kept interactions as a tensor that reads feature activations z, with one output."""
        diagonal = self.self_top
        first = torch.cat([diagonal, self.cross_pairs[:, 0]])
        second = torch.cat([diagonal, self.cross_pairs[:, 1]])
        weights = torch.cat([self.self_values[diagonal], 2 * self.cross_values])
        legs = torch.zeros(2, self.n_features, len(first)).to(weights)
        legs[0, first, torch.arange(len(first))] = 1.0
        legs[1, second, torch.arange(len(first))] = 1.0
        return BilinearTensor(left=legs[0], right=legs[1], out=weights[None])


def interaction_table(
    tensor: BilinearTensor,
    u: Float[Tensor, " d_out"],
    features: Float[Tensor, "n d_in"],
    k: int = 32,
    *,
    gauge: Gauge = "none",
    block: int = BLOCK,
) -> InteractionTable:
    """Interactions of all pairs of features along u, the k largest of each kind kept.

    O(rank d^2 + n d^2 + n^2 d / 2) in the tensor's dtype, and O(n d + block^2) memory: the
    n^2 table is never held. What is kept is chosen in that precision and then computed again
    in float64; equal magnitudes keep the lower indices.

    Args:
        features: one direction per row, in the input space that both legs read.
        k: how many self and how many cross interactions to keep (all, where there are fewer).
        gauge: "none", or "traceless" for Q - (tr Q / d) I, the same function after RMSNorm.
        block: features per side of a block; the result does not depend on it.

    Raises:
        ValueError: wrong shapes, numbers that are not finite, u = 0, `k` beyond the number of
            pairs, an unknown gauge, legs that read different spaces.
    """
    _check(tensor, u, features, k, block)
    matrix = _matrix(tensor, u, gauge)
    return _stream(matrix, u.to(tensor.out), features.to(tensor.out), k, gauge, block)


def random_tables(
    tensor: BilinearTensor,
    u: Float[Tensor, " d_out"],
    features: Float[Tensor, "n d_in"],
    k: int = 32,
    *,
    draws: int = 3,
    seed: int = 0,
    gauge: Gauge = "none",
    block: int = BLOCK,
) -> tuple[InteractionTable, ...]:
    """The matched baseline: tables of matrices with Q(u)'s eigenvalues and random eigenvectors.

    Each draw costs as much as `interaction_table` and O(d^3). Errors as there.
    """
    _check(tensor, u, features, k, block)
    values = torch.linalg.eigvalsh(_matrix(tensor, u, gauge))
    generator = torch.Generator().manual_seed(seed)
    tables = []
    for _ in range(draws):
        rotation = random_rotation(len(values), generator).to(values)
        matrix = (rotation * values) @ rotation.T
        tables.append(_stream(matrix, u.to(tensor.out), features.to(tensor.out), k, gauge, block))
    return tuple(tables)


def random_rotation(size: int, generator: torch.Generator) -> Float[Tensor, "size size"]:
    """A Haar-random orthogonal matrix, in float64: QR of a Gaussian, signs fixed."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def _check(tensor: BilinearTensor, u: Tensor, features: Tensor, k: int, block: int) -> None:
    d_in, d_out = tensor.d_in, tensor.d_out
    if u.shape != (d_out,):
        raise ValueError(
            f"`u` must have shape [{d_out}] (d_out of the tensor), got {list(u.shape)}"
        )
    if features.ndim != 2 or features.shape[1] != d_in or not len(features):
        raise ValueError(
            f"`features` must be rows of {d_in} numbers (d_in of the tensor), one per feature, "
            f"got shape {list(features.shape)}: a dictionary of another width?"
        )
    for name, value in (("u", u), ("features", features)):
        if not torch.isfinite(value).all():
            raise ValueError(f"`{name}` has entries that are not finite (NaN or infinite)")
    if not u.any():
        raise ValueError("`u` is zero: it has no interactions. Give another output direction")
    n = len(features)
    largest = max(n, n * (n - 1) // 2)
    if not 1 <= k <= largest:
        raise ValueError(f"`k` must be between 1 and the {largest} pairs of {n} features, got {k}")
    if block < 1:
        raise ValueError(f"`block` must be at least 1, got {block}")


def _matrix(tensor: BilinearTensor, u: Tensor, gauge: Gauge) -> Float[Tensor, "d_in d_in"]:
    if gauge not in ("none", "traceless"):
        raise ValueError(f'`gauge` must be "none" or "traceless", got {gauge!r}')
    matrix = tensor.to(torch.float64).interaction_matrix(u.to(tensor.out.device, torch.float64))
    if not torch.isfinite(matrix).all():
        raise ValueError(
            "the interaction matrix has entries that are not finite: look for NaN "
            "or infinite weights"
        )
    if gauge == "traceless":
        matrix = matrix - torch.eye(len(matrix)).to(matrix) * matrix.diagonal().mean()
    return matrix


def _stream(
    matrix: Float[Tensor, "d_in d_in"],
    u: Tensor,
    features: Float[Tensor, "n d_in"],
    k: int,
    gauge: Gauge,
    block: int,
) -> InteractionTable:
    """The table of one matrix, block by block of its upper triangle."""
    n = len(features)
    projected = features @ matrix.to(features)
    block = min(block, n)
    room = features.new_empty(2, block * block)
    found = Largest(k)
    sums = [0.0] * 4
    for i in range(0, n, block):
        rows = projected[i : i + block]
        for j in range(i, n, block):
            columns = features[j : j + block]
            size = len(rows) * len(columns)
            values = torch.mm(rows, columns.T, out=room[0, :size].view(len(rows), len(columns)))
            if i == j:
                values.triu_(1)
            squares = torch.mul(values, values, out=room[1, :size].view_as(values))
            for power, part in enumerate(_power_sums(values.view(-1), squares.view(-1))):
                sums[power] += part
            found.add(values, squares, i, j)
    diagonal = _exact(matrix, features, torch.arange(n), torch.arange(n))
    pairs = found.pairs().to(features.device)
    values = _exact(matrix, features, pairs[:, 0], pairs[:, 1])
    order = values.abs().argsort(descending=True, stable=True)
    on_diagonal = [float(diagonal.pow(power).sum()) for power in (1, 2, 3, 4)]
    return InteractionTable(
        direction=u,
        self_values=diagonal.to(features),
        self_top=diagonal.abs().argsort(descending=True, stable=True)[:k],
        cross_pairs=pairs[order],
        cross_values=values[order].to(features),
        self_moments=_moments(n, on_diagonal),
        cross_moments=_moments(n * (n - 1) // 2, sums),
        gauge=gauge,
    )


def _power_sums(values: Float[Tensor, " m"], squares: Float[Tensor, " m"]) -> tuple[float, ...]:
    """Sums of the first four powers."""
    first, second = float(values.sum()), float(squares.sum())
    return first, second, float(squares.dot(values)), float(squares.dot(squares))


def _exact(matrix: Tensor, features: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """d_i^T Q d_j for given pairs, in the matrix's precision, some pairs at a time."""
    parts = []
    for start in range(0, len(first), 1024):
        left = features[first[start : start + 1024]].to(matrix) @ matrix
        parts.append((left * features[second[start : start + 1024]].to(matrix)).sum(-1))
    return torch.cat(parts) if parts else matrix.new_zeros(0)


def _moments(count: int, sums: list[float]) -> Moments:
    """From the sums of the first four powers."""
    if not count:
        return Moments(0, float("nan"), float("nan"), float("nan"), 0.0)
    mean, second, third, fourth = (total / count for total in sums)
    variance = max(0.0, second - mean**2)
    central = fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4
    kurtosis = central / variance**2 if variance > 1e-14 * second else float("nan")
    return Moments(count, mean, variance**0.5, kurtosis, sums[1])
