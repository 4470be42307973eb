"""The four kinds of term that a one-layer model's logits are the sum of, each kept factored.

Fixed depends on no token, Rows on one (or on a position), Pairs on two that vary independently.
Rows covers W_U x, W_U B(x, bias) and W_U B(x, x), where the same x stands twice so that only the
diagonal of the pair tensor occurs (2305.03452's direct x direct).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tl_bilinear.circuits.virtual_source import BLOCK, VirtualSource
from tl_bilinear.tensor import BilinearTensor


@dataclass(frozen=True, eq=False)
class Fixed:
    """One vector."""

    vector: Float[Tensor, " size"]
    on_logits: bool = False
    """Whether it is added to the logits rather than to the stream."""


@dataclass(frozen=True, eq=False)
class Rows:
    """`feature(inner row i) matrix` of the stream, for each i of one source."""

    source: VirtualSource
    matrix: Float[Tensor, "k d_model"]
    feature: Callable[[Float[Tensor, "rows inner"]], Float[Tensor, "rows k"]] | None = None
    """None where the inner rows themselves are multiplied."""

    def blocks(self, block: int = BLOCK) -> Iterator[tuple[int, Float[Tensor, "rows k"]]]:
        """(first row, what is multiplied by the matrix)."""
        for start, rows in self.source.blocks(block):
            yield start, rows if self.feature is None else self.feature(rows)


@dataclass(frozen=True, eq=False)
class Pairs:
    """`coefficient B_s(x_i, y_j)` of the stream, for each i of one source and j of another.

    B_s is the MLP's tensor, symmetrised. The coefficient is 2 for two sources and 1 for one source
    taken twice, at two attended positions.
    """

    first: VirtualSource
    second: VirtualSource
    tensor: BilinearTensor

    @property
    def same(self) -> bool:
        return self.first is self.second

    @property
    def coefficient(self) -> int:
        return 1 if self.same else 2

    def along(self, u: Float[Tensor, " d_model"]) -> Float[Tensor, "k_first k_second"]:
        """M with `u . term[i, j] = first.inner_rows[i] M second.inner_rows[j]`. O(rank d^2)."""
        matrix = self.second.outward(self.tensor.interaction_matrix(u)).T
        return self.coefficient * self.first.outward(matrix)


Form = Fixed | Rows | Pairs


def linear_form(source: VirtualSource, tensor: BilinearTensor) -> Form:
    """The source as the stream holds it: the path past the MLP."""
    if source.argument is None:
        return Fixed(source.rows()[0])
    identity = tensor.out.new_ones(tensor.d_in).diag()
    return Rows(source, source.outward(identity))


def pair_form(first: VirtualSource, second: VirtualSource, tensor: BilinearTensor) -> Form:
    """What the MLP makes of two sources, or of one with itself."""
    if first is second and first.argument is not None and first.head is not None:
        return Pairs(first, first, tensor)
    if first is second:
        return _diagonal(first, tensor)
    if first.argument is None or second.argument is None:
        single, other = (first, second) if first.argument is None else (second, first)
        vector = single.rows()[0]
        return bias_form(other, tensor, vector @ tensor.left, vector @ tensor.right)
    return Pairs(first, second, tensor)


def bias_form(
    source: VirtualSource,
    tensor: BilinearTensor,
    left: Float[Tensor, " rank"],
    right: Float[Tensor, " rank"],
) -> Form:
    """What the MLP makes of a source and a bias whose two legs are given."""
    matrix = (tensor.left * right + tensor.right * left) @ tensor.out.T
    if source.argument is None:
        return Fixed(source.rows()[0] @ matrix)
    return Rows(source, source.outward(matrix))


def _diagonal(source: VirtualSource, tensor: BilinearTensor) -> Form:
    """The same vector on both legs: a token at one position is one token."""
    if source.argument is None:
        return Fixed(tensor(source.rows()[0]))

    def feature(rows: Tensor) -> Tensor:
        x = source.through(rows)
        return (x @ tensor.left) * (x @ tensor.right)

    return Rows(source, tensor.out.T, feature)
