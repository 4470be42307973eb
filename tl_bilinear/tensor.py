"""The factored third-order tensor of a bilinear map, and its algebra.

    B[o, i, j] = sum_r out[o, r] left[i, r] right[j, r]        B(x)_o = sum_ij B[o, i, j] x_i x_j

For a bilinear MLP, `left` is `W_gate`, `right` is `W_in` (both `[d_model, d_mlp]`, as
TransformerLens stores them), `out` is `W_out` transposed and the rank is `d_mlp`
(2305.03452; 2410.08417 section 3). Everything here costs O(rank * d) per vector or
O(rank * d^2) per matrix; only `to_dense()` builds d^3 numbers. Gradients reach the factors
through every method.

The legs of an MLP read one input, and only the part of B that is symmetric in i and j acts. The
legs of a composed path (say, of two heads) read two inputs and nothing may be symmetrised, even
where the two are of one size: `shared_input` says which of the two a tensor is.
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


@dataclass(frozen=True, eq=False)
class BilinearTensor:
    """A third-order tensor kept as three factor matrices that share a rank axis.

    Raises:
        ValueError: if the factors are not matrices, or differ in rank, dtype or device, or legs
            of two sizes are said to read one input.
    """

    left: Float[Tensor, "d_left rank"]
    """Factor of the first input leg (`W_gate` of an MLP)."""
    right: Float[Tensor, "d_right rank"]
    """Factor of the second input leg (`W_in` of an MLP)."""
    out: Float[Tensor, "d_out rank"]
    """Factor of the output leg (`W_out` transposed, of an MLP)."""
    shared_input: bool | None = field(default=None, kw_only=True)
    """Whether both legs read one input. Where it is not said: whether they have one size."""

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
        one_size = self.left.shape[0] == self.right.shape[0]
        if self.shared_input and not one_size:
            raise ValueError(
                f"`shared_input=True` needs legs of one size, got left {self.left.shape[0]} and "
                f"right {self.right.shape[0]}"
            )
        if self.shared_input is None:
            object.__setattr__(self, "shared_input", one_size)

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
        """Size of the input that both legs share; a ValueError where they read two."""
        if not self.shared_input:
            raise ValueError(
                f"this tensor reads two different spaces (left {self.d_left}, right "
                f"{self.d_right}): use d_left and d_right, and give B both inputs"
            )
        return self.d_left

    @property
    def dtype(self) -> torch.dtype:
        return self.out.dtype

    @property
    def device(self) -> torch.device:
        return self.out.device

    def __call__(
        self,
        x: Float[Tensor, "*batch {self.d_left}"],
        y: Float[Tensor, "*batch {self.d_right}"] | None = None,
    ) -> Float[Tensor, "*batch {self.d_out}"]:
        """`B(x, y)`, with `y = x` where it is not given. O(rank * d) per vector.

        With two inputs, of the tensor as it stands: x goes to `left` and y to `right`.
        """
        if y is None:
            _ = self.d_in
            y = x
        return ((x @ self.left) * (y @ self.right)) @ self.out.T

    def interaction_matrix(
        self, u: Float[Tensor, "*batch {self.d_out}"]
    ) -> Float[Tensor, "*batch {self.d_left} {self.d_right}"]:
        """`Q(u) = sum_o u_o B[o]`, symmetrised where both legs read one input.

        Only the symmetric part acts on a single input, and an eigensolver that reads one
        triangle of an unsymmetrised Q returns a wrong spectrum (2410.08417 section 2).
        O(rank * d^2) per direction.
        """
        weights = u @ self.out
        matrix = (self.left * weights.unsqueeze(-2)) @ self.right.T
        return (matrix + matrix.mT) / 2 if self.shared_input else matrix

    def symmetrized(self) -> "BilinearTensor":
        """The same function of one input with `B[o, i, j] = B[o, j, i]`; the rank doubles."""
        _ = self.d_in
        return BilinearTensor(
            left=torch.cat([self.left, self.right], dim=1),
            right=torch.cat([self.right, self.left], dim=1),
            out=torch.cat([self.out, self.out], dim=1) / 2,
        )

    def transposed(self) -> "BilinearTensor":
        """The tensor with its input legs exchanged: `B.transposed()(x, y) = B(y, x)`."""
        return replace(self, left=self.right, right=self.left)

    def __getitem__(self, index: int | slice | list | Shaped[Tensor, " index"]) -> "BilinearTensor":
        """The chosen outputs, a view where it is a slice; a single one keeps its axis of size 1.

        Raises:
            IndexError: an output that does not exist.
        """
        if isinstance(index, int):
            if not -self.d_out <= index < self.d_out:
                raise IndexError(f"output {index} of a tensor that has {self.d_out}")
            index = [index]
        return replace(self, out=self.out[index])

    def __add__(self, other: "BilinearTensor") -> "BilinearTensor":
        """Sum of two tensors of one shape; the ranks add."""
        self._require_same_shape(other, "+")
        return replace(
            self,
            left=torch.cat([self.left, other.left], dim=1),
            right=torch.cat([self.right, other.right], dim=1),
            out=torch.cat([self.out, other.out], dim=1),
        )

    def __sub__(self, other: "BilinearTensor") -> "BilinearTensor":
        return self + (-1.0) * other

    def __mul__(self, scale: float) -> "BilinearTensor":
        return replace(self, out=self.out * scale)

    __rmul__ = __mul__

    def __neg__(self) -> "BilinearTensor":
        return -1.0 * self

    def inner(self, other: "BilinearTensor", *, symmetrized: bool = False) -> Float[Tensor, ""]:
        """Frobenius inner product `sum_oij A[o,i,j] B[o,i,j]`. O(rank_a * rank_b * d).

        Args:
            symmetrized: of the symmetric parts, which is what compares two functions of one
                input; otherwise of the tensors as they stand.
        """
        self._require_same_shape(other, "inner")
        gram = self.input_gram(other, symmetrized=symmetrized)
        return (gram * (self.out.T @ other.out)).sum()

    def cosine(self, other: "BilinearTensor", *, symmetrized: bool = False) -> Float[Tensor, ""]:
        """Inner product over the product of the norms, -1 to 1. O(rank^2 * d).

        Raises:
            ValueError: two tensors of different shape, or one of norm zero.
        """
        inner = self.inner(other, symmetrized=symmetrized)
        norms = self.norm(symmetrized=symmetrized), other.norm(symmetrized=symmetrized)
        if not (norms[0] > 0 and norms[1] > 0):
            raise ValueError(
                f"a cosine needs two tensors of norm above zero, got {float(norms[0]):.3g} and "
                f"{float(norms[1]):.3g}"
            )
        return inner / norms[0] / norms[1]

    def input_gram(
        self, other: "BilinearTensor", *, symmetrized: bool = True
    ) -> Float[Tensor, "{self.rank} {other.rank}"]:
        """K[r, s], the inner product of the input matrices left_r right_r^T of two tensors.

        Symmetrised, `((L^T L') * (R^T R') + (L^T R') * (R^T L')) / 2`: the inner product of their
        symmetric parts, so that `out K out'^T` is the Gram matrix of the symmetrised tensors'
        output unfoldings and no tensor is built. O(rank * rank_other * d).
        """
        self._require_same_input(other, "input_gram")
        plain = (self.left.T @ other.left) * (self.right.T @ other.right)
        if not symmetrized:
            return plain
        _ = self.d_in
        return (plain + (self.left.T @ other.right) * (self.right.T @ other.left)) / 2

    def norm(self, *, symmetrized: bool = False) -> Float[Tensor, ""]:
        """Frobenius norm, `sqrt(<B, B>)`. O(rank^2 * d).

        The norm of a difference is itself a difference of squares: below 1e-8 of its terms' norms
        (3e-4 in float32) it is rounding.
        """
        return self.inner(self, symmetrized=symmetrized).clamp_min(0).sqrt()

    def contract_out(self, matrix: Float[Tensor, "d_new {self.d_out}"]) -> "BilinearTensor":
        """`matrix @ B(x)` as a tensor: a linear map after the output leg."""
        return replace(self, out=matrix @ self.out)

    def compose(
        self,
        *,
        left: Float[Tensor, "{self.d_left} new_left"] | None = None,
        right: Float[Tensor, "{self.d_right} new_right"] | None = None,
        out: Float[Tensor, "new_out {self.d_out}"] | None = None,
    ) -> "BilinearTensor":
        """`out @ B(left @ x, right @ y)` as a tensor of x and y; None is the identity.

        Legs that read one input go on doing so only where both pass the same matrix (`left is
        right`): otherwise the result reads two inputs, whatever their sizes.
        """
        return BilinearTensor(
            left=self.left if left is None else left.T @ self.left,
            right=self.right if right is None else right.T @ self.right,
            out=self.out if out is None else out @ self.out,
            shared_input=bool(self.shared_input) and left is right,
        )

    def change_basis(self, matrix: Float[Tensor, "{self.d_left} d_new"]) -> "BilinearTensor":
        """The tensor that reads `z` where this one reads `x = matrix @ z`, on both legs."""
        _ = self.d_in
        return self.compose(left=matrix, right=matrix)

    def to_dense(self) -> Float[Tensor, "{self.d_out} {self.d_left} {self.d_right}"]:
        """All d_out * d_left * d_right numbers, not symmetrised. O(rank * d^3) time."""
        return torch.einsum("or,ir,jr->oij", self.out, self.left, self.right)

    def to(self, *args, **kwargs) -> "BilinearTensor":
        """As `torch.Tensor.to`, on the three factors."""
        return replace(
            self,
            left=self.left.to(*args, **kwargs),
            right=self.right.to(*args, **kwargs),
            out=self.out.to(*args, **kwargs),
        )

    def _require_same_shape(self, other: "BilinearTensor", operation: str) -> None:
        self._require_same_input(other, operation)
        if self.d_out != other.d_out:
            raise ValueError(
                f"`{operation}` needs two tensors of one shape (d_out, d_left, d_right): "
                f"got {self._shape} and {other._shape}"
            )

    def _require_same_input(self, other: "BilinearTensor", operation: str) -> None:
        if self._shape[1:] != other._shape[1:]:
            raise ValueError(
                f"`{operation}` needs two tensors of one shape (d_out, d_left, d_right), or that "
                f"read the same spaces at least: got {self._shape} and {other._shape}"
            )
        if self.shared_input != other.shared_input:
            raise ValueError(
                f"`{operation}` of a tensor whose legs read one input and one whose legs read two "
                "(`shared_input`): make both the same with dataclasses.replace"
            )
        mine, theirs = (self.dtype, self.device), (other.dtype, other.device)
        if mine != theirs:
            raise ValueError(
                f"`{operation}` needs two tensors of one dtype and device, got {mine} and "
                f"{theirs}: use .to(...)"
            )

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.d_out, self.d_left, self.d_right
