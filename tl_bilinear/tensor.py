"""The factored third-order tensor of a bilinear map, and its algebra.

    B[o, i, j] = sum_r out[o, r] left[i, r] right[j, r]        B(x)_o = sum_ij B[o, i, j] x_i x_j

For a bilinear MLP, `left` is `W_gate`, `right` is `W_in` (both `[d_model, d_mlp]`, as
TransformerLens stores them), `out` is `W_out` transposed and the rank is `d_mlp`
(2305.03452; 2410.08417 section 3). Everything here costs O(rank * d) per vector or
O(rank * d^2) per matrix; only `to_dense()` builds d^3 numbers.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class BilinearTensor:
    """A third-order tensor kept as three factor matrices that share a rank axis.

    Raises:
        ValueError: if the factors are not matrices, or differ in rank, dtype or device.
    """

    left: Float[Tensor, "d_left rank"]
    """Factor of the first input leg (`W_gate` of an MLP)."""
    right: Float[Tensor, "d_right rank"]
    """Factor of the second input leg (`W_in` of an MLP)."""
    out: Float[Tensor, "d_out rank"]
    """Factor of the output leg (`W_out` transposed, of an MLP)."""

    def __post_init__(self):
        factors = {"left": self.left, "right": self.right, "out": self.out}
        shapes = {name: tuple(factor.shape) for name, factor in factors.items()}
        if any(len(shape) != 2 for shape in shapes.values()):
            raise ValueError(
                f"`left`, `right` and `out` must be [size, rank] matrices, got {shapes}"
            )
        if len({shape[1] for shape in shapes.values()}) != 1:
            raise ValueError(
                f"`left`, `right` and `out` must share their last axis, the rank, got {shapes}. "
                "TransformerLens stores W_out as [d_mlp, d_model]: pass W_out.T as `out`."
            )
        kinds = {(factor.dtype, factor.device) for factor in factors.values()}
        if len(kinds) != 1:
            raise ValueError(
                f"the factors must share dtype and device, got {sorted(map(str, kinds))}"
            )

    @property
    def d_out(self) -> int:
        return self.out.shape[0]

    @property
    def d_left(self) -> int:
        return self.left.shape[0]

    @property
    def d_right(self) -> int:
        return self.right.shape[0]

    @property
    def rank(self) -> int:
        return self.out.shape[1]

    @property
    def d_in(self) -> int:
        """Size of the input space that both legs share; a ValueError where they differ."""
        if self.d_left != self.d_right:
            raise ValueError(
                f"this tensor reads two different spaces (left {self.d_left}, right "
                f"{self.d_right}): use d_left and d_right, and give B both inputs"
            )
        return self.d_left

    def __call__(
        self,
        x: Float[Tensor, "*batch {self.d_left}"],
        y: Float[Tensor, "*batch {self.d_right}"] | None = None,
    ) -> Float[Tensor, "*batch {self.d_out}"]:
        """`B(x, y)`, with `y = x` where it is not given. O(rank * d) per vector."""
        if y is None:
            _ = self.d_in
            y = x
        return ((x @ self.left) * (y @ self.right)) @ self.out.T

    def interaction_matrix(
        self, u: Float[Tensor, "*batch {self.d_out}"]
    ) -> Float[Tensor, "*batch {self.d_left} {self.d_right}"]:
        """`Q(u) = sum_o u_o B[o]`, symmetrised where both legs read one space.

        Only the symmetric part acts on a single input, and an eigensolver that reads one
        triangle of an unsymmetrised Q returns a wrong spectrum (2410.08417 section 2).
        O(rank * d^2) per direction.
        """
        weights = u @ self.out
        matrix = (self.left * weights.unsqueeze(-2)) @ self.right.T
        if self.d_left != self.d_right:
            return matrix
        return (matrix + matrix.mT) / 2

    def symmetrized(self) -> "BilinearTensor":
        """The same function of one input with `B[o, i, j] = B[o, j, i]`; the rank doubles."""
        _ = self.d_in
        return BilinearTensor(
            left=torch.cat([self.left, self.right], dim=1),
            right=torch.cat([self.right, self.left], dim=1),
            out=torch.cat([self.out, self.out], dim=1) / 2,
        )

    def __add__(self, other: "BilinearTensor") -> "BilinearTensor":
        """Sum of two tensors of one shape; the ranks add."""
        self._require_same_shape(other, "+")
        return BilinearTensor(
            left=torch.cat([self.left, other.left], dim=1),
            right=torch.cat([self.right, other.right], dim=1),
            out=torch.cat([self.out, other.out], dim=1),
        )

    def __sub__(self, other: "BilinearTensor") -> "BilinearTensor":
        return self + (-1.0) * other

    def __mul__(self, scale: float) -> "BilinearTensor":
        return replace(self, out=self.out * scale)

    __rmul__ = __mul__

    def inner(self, other: "BilinearTensor") -> Float[Tensor, ""]:
        """Frobenius inner product `sum_oij A[o,i,j] B[o,i,j]`. O(rank_a * rank_b * d).

        Of the tensors as they stand: symmetrise both first to compare functions.
        """
        self._require_same_shape(other, "inner")
        return (self.input_gram(other, symmetrized=False) * (self.out.T @ other.out)).sum()

    def input_gram(
        self, other: "BilinearTensor", *, symmetrized: bool = True
    ) -> Float[Tensor, "{self.rank} {other.rank}"]:
        """K[r, s], the inner product of the input matrices left_r right_r^T of two tensors.

        Symmetrised, `((L^T L') * (R^T R') + (L^T R') * (R^T L')) / 2`: the inner product of their
        symmetric parts, so that `out K out'^T` is the Gram matrix of the symmetrised tensors'
        output unfoldings and no tensor is built. O(rank * rank_other * d).
        """
        if (self.d_left, self.d_right) != (other.d_left, other.d_right):
            raise ValueError(
                "`input_gram` needs two tensors that read the same spaces (d_left, d_right): got "
                f"{(self.d_left, self.d_right)} and {(other.d_left, other.d_right)}"
            )
        plain = (self.left.T @ other.left) * (self.right.T @ other.right)
        if not symmetrized:
            return plain
        _ = self.d_in
        return (plain + (self.left.T @ other.right) * (self.right.T @ other.left)) / 2

    def norm(self) -> Float[Tensor, ""]:
        """Frobenius norm, `sqrt(<B, B>)`. O(rank^2 * d)."""
        return self.inner(self).clamp_min(0).sqrt()

    def contract_out(self, matrix: Float[Tensor, "d_new {self.d_out}"]) -> "BilinearTensor":
        """`matrix @ B(x)` as a tensor: a linear map after the output leg."""
        return replace(self, out=matrix @ self.out)

    def change_basis(self, matrix: Float[Tensor, "{self.d_left} d_new"]) -> "BilinearTensor":
        """The tensor that reads `z` where this one reads `x = matrix @ z`, on both legs."""
        _ = self.d_in
        return replace(self, left=matrix.T @ self.left, right=matrix.T @ self.right)

    def to_dense(self) -> Float[Tensor, "{self.d_out} {self.d_left} {self.d_right}"]:
        """All d_out * d_left * d_right numbers, not symmetrised. O(rank * d^3) time."""
        return torch.einsum("or,ir,jr->oij", self.out, self.left, self.right)

    def to(self, *args, **kwargs) -> "BilinearTensor":
        """As `torch.Tensor.to`, on the three factors."""
        return BilinearTensor(
            left=self.left.to(*args, **kwargs),
            right=self.right.to(*args, **kwargs),
            out=self.out.to(*args, **kwargs),
        )

    def _require_same_shape(self, other: "BilinearTensor", operation: str) -> None:
        mine = (self.d_out, self.d_left, self.d_right)
        theirs = (other.d_out, other.d_left, other.d_right)
        if mine != theirs:
            raise ValueError(
                f"`{operation}` needs two tensors of one shape (d_out, d_left, d_right): "
                f"got {mine} and {theirs}"
            )
