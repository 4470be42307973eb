"""A bilinear layer with its biases: quadratic, linear and constant part, kept apart.

    f(x) = out ((left^T x + left_bias) * (right^T x + right_bias)) + out_bias
         = B(x) + A x + c

with A x = out (left_bias * right^T x + right_bias * left^T x) and
c = out (left_bias * right_bias) + out_bias (2410.08417 appendix L). Modes are
eigenvectors of B alone: the homogeneous coordinate [x; 1] would make them depend on the
constant's scale. As a device for algebra it is here: `homogeneous()` is one tensor of [x; 1].

A tensor whose legs read two inputs makes a map of two, f(x, y).
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from tl_bilinear.tensor import BilinearTensor


@dataclass(frozen=True, eq=False)
class QuadraticMap:
    """`x -> B(x) + A x + c`, factored.

    Raises:
        ValueError: a bias of the wrong length, dtype or device.
    """

    tensor: BilinearTensor
    """The quadratic part B."""
    left_bias: Float[Tensor, " rank"]
    """Added to `left^T x` inside the product (`b_gate` of an MLP, norm bias folded in)."""
    right_bias: Float[Tensor, " rank"]
    """Added to `right^T x` inside the product (`b_in` of an MLP, norm bias folded in)."""
    out_bias: Float[Tensor, " d_out"]
    """Added to the output (`b_out` of an MLP)."""

    def __post_init__(self):
        rank, d_out = self.tensor.rank, self.tensor.d_out
        for name, size in (("left_bias", rank), ("right_bias", rank), ("out_bias", d_out)):
            bias = getattr(self, name)
            if tuple(bias.shape) != (size,):
                raise ValueError(
                    f"`{name}` must have shape ({size},), as the tensor's "
                    f"{'d_out' if name == 'out_bias' else 'rank'} says, got {tuple(bias.shape)}"
                )
            if (bias.dtype, bias.device) != (self.tensor.dtype, self.tensor.device):
                raise ValueError(
                    f"`{name}` must share the tensor's dtype and device ({self.tensor.dtype}, "
                    f"{self.tensor.device}), got {bias.dtype}, {bias.device}"
                )

    @classmethod
    def from_tensor(cls, tensor: BilinearTensor) -> "QuadraticMap":
        """B as a map without biases."""
        inner = tensor.out.new_zeros(tensor.rank)
        return cls(tensor, inner, inner, tensor.out.new_zeros(tensor.d_out))

    @classmethod
    def from_homogeneous(cls, tensor: BilinearTensor) -> "QuadraticMap":
        """The map of x that a tensor of [x; 1] is: the inverse of `homogeneous()`."""
        if min(tensor.d_left, tensor.d_right) < 2:
            raise ValueError(
                "a tensor of [x; 1] has legs of size 2 at least, got "
                f"{tensor.d_left} and {tensor.d_right}"
            )
        inner = replace(tensor, left=tensor.left[:-1], right=tensor.right[:-1])
        nothing = tensor.out.new_zeros(tensor.d_out)
        return cls(inner, tensor.left[-1], tensor.right[-1], nothing)

    @property
    def d_in(self) -> int:
        """Size of the input that both legs share; a ValueError where they read two."""
        return self.tensor.d_in

    @property
    def d_out(self) -> int:
        return self.tensor.d_out

    def __call__(
        self,
        x: Float[Tensor, "*batch {self.tensor.d_left}"],
        y: Float[Tensor, "*batch {self.tensor.d_right}"] | None = None,
    ) -> Float[Tensor, "*batch {self.d_out}"]:
        """The layer's value, computed as one product. O(rank * d) per vector."""
        left = x @ self.tensor.left + self.left_bias
        right = self._second(x, y) @ self.tensor.right + self.right_bias
        return (left * right) @ self.tensor.out.T + self.out_bias

    def quadratic(
        self,
        x: Float[Tensor, "*batch {self.tensor.d_left}"],
        y: Float[Tensor, "*batch {self.tensor.d_right}"] | None = None,
    ) -> Float[Tensor, "*batch {self.d_out}"]:
        """B(x)."""
        return self.tensor(x, y)

    def linear(
        self,
        x: Float[Tensor, "*batch {self.tensor.d_left}"],
        y: Float[Tensor, "*batch {self.tensor.d_right}"] | None = None,
    ) -> Float[Tensor, "*batch {self.d_out}"]:
        """A x. O(rank * d) per vector; A is never built."""
        mixed = self.left_bias * (self._second(x, y) @ self.tensor.right)
        mixed = mixed + self.right_bias * (x @ self.tensor.left)
        return mixed @ self.tensor.out.T

    def constant(self) -> Float[Tensor, " {self.d_out}"]:
        """c, the value at x = 0."""
        return (self.left_bias * self.right_bias) @ self.tensor.out.T + self.out_bias

    def linear_map(self) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        """A as a matrix. O(rank * d^2)."""
        return self.tensor.out @ self.linear_factor().T

    def linear_factor(self) -> Float[Tensor, "{self.d_in} {self.tensor.rank}"]:
        """F with A = out F^T: the linear part on the rank axis. O(rank * d)."""
        _ = self.d_in
        return self.tensor.right * self.left_bias + self.tensor.left * self.right_bias

    def homogeneous(self, *, keep_one: bool = False) -> BilinearTensor:
        """f as a tensor of [x; 1], of rank + 1: `homogeneous()([x; 1]) = f(x)`.

        Args:
            keep_one: the output is [f(x); 1], which the next layer's homogeneous form can read.
        """
        tensor = self.tensor

        def leg(factor: Tensor, bias: Tensor) -> Tensor:
            one = torch.cat([factor.new_zeros(factor.shape[0]), factor.new_ones(1)])
            return torch.cat([torch.cat([factor, bias[None]]), one[:, None]], dim=1)

        out = torch.cat([tensor.out, self.out_bias[:, None]], dim=1)
        if keep_one:
            row = torch.cat([out.new_zeros(tensor.rank), out.new_ones(1)])
            out = torch.cat([out, row[None]])
        return BilinearTensor(
            left=leg(tensor.left, self.left_bias),
            right=leg(tensor.right, self.right_bias),
            out=out,
            shared_input=tensor.shared_input,
        )

    def symmetrized(self) -> "QuadraticMap":
        """The same function of one input with a symmetric B; the rank doubles."""
        return QuadraticMap(
            tensor=self.tensor.symmetrized(),
            left_bias=torch.cat([self.left_bias, self.right_bias]),
            right_bias=torch.cat([self.right_bias, self.left_bias]),
            out_bias=self.out_bias,
        )

    def __getitem__(self, index: int | slice | list | Shaped[Tensor, " index"]) -> "QuadraticMap":
        """The chosen outputs; a single one keeps its axis of size 1."""
        tensor = self.tensor[index]
        chosen = [index] if isinstance(index, int) else index
        return replace(self, tensor=tensor, out_bias=self.out_bias[chosen])

    def __add__(self, other: "QuadraticMap") -> "QuadraticMap":
        """Sum of two maps of one shape; the ranks add."""
        return QuadraticMap(
            tensor=self.tensor + other.tensor,
            left_bias=torch.cat([self.left_bias, other.left_bias]),
            right_bias=torch.cat([self.right_bias, other.right_bias]),
            out_bias=self.out_bias + other.out_bias,
        )

    def __sub__(self, other: "QuadraticMap") -> "QuadraticMap":
        return self + (-1.0) * other

    def __mul__(self, scale: float) -> "QuadraticMap":
        return replace(self, tensor=self.tensor * scale, out_bias=self.out_bias * scale)

    __rmul__ = __mul__

    def __neg__(self) -> "QuadraticMap":
        return -1.0 * self

    def contract_out(
        self,
        matrix: Float[Tensor, "d_new {self.d_out}"],
        offset: Float[Tensor, " d_new"] | None = None,
    ) -> "QuadraticMap":
        """`matrix @ f(x) + offset`: an affine map after the output."""
        bias = matrix @ self.out_bias
        return replace(
            self,
            tensor=self.tensor.contract_out(matrix),
            out_bias=bias if offset is None else bias + offset,
        )

    def compose(
        self,
        *,
        left: Float[Tensor, "{self.tensor.d_left} new_left"] | None = None,
        right: Float[Tensor, "{self.tensor.d_right} new_right"] | None = None,
        out: Float[Tensor, "new_out {self.d_out}"] | None = None,
    ) -> "QuadraticMap":
        """`out @ f(left @ x, right @ y)`, as `BilinearTensor.compose`; biases stay."""
        return replace(
            self,
            tensor=self.tensor.compose(left=left, right=right, out=out),
            out_bias=self.out_bias if out is None else out @ self.out_bias,
        )

    def change_basis(
        self,
        matrix: Float[Tensor, "{self.d_in} d_new"],
        offset: Float[Tensor, " {self.d_in}"] | None = None,
    ) -> "QuadraticMap":
        """The map that reads `z` where this one reads `x = matrix @ z + offset`."""
        shift = matrix.new_zeros(self.d_in) if offset is None else offset
        return replace(
            self,
            tensor=self.tensor.change_basis(matrix),
            left_bias=self.left_bias + shift @ self.tensor.left,
            right_bias=self.right_bias + shift @ self.tensor.right,
        )

    def to(self, *args, **kwargs) -> "QuadraticMap":
        """As `torch.Tensor.to`, on every factor and bias."""
        return QuadraticMap(
            tensor=self.tensor.to(*args, **kwargs),
            left_bias=self.left_bias.to(*args, **kwargs),
            right_bias=self.right_bias.to(*args, **kwargs),
            out_bias=self.out_bias.to(*args, **kwargs),
        )

    def fold_input_norm(
        self,
        gain: Float[Tensor, " d_in"] | None,
        bias: Float[Tensor, " d_in"] | None,
        centred: bool,
    ) -> "QuadraticMap":
        """The map that reads the normalised stream where this one reads `gain * x + bias`.

        Args:
            gain: the norm's gain, folded into both inputs; None is a gain of one.
            bias: the norm's bias, folded into both inner biases; None is zero.
            centred: the normalised stream has mean zero over its entries (LayerNorm), so the
                all-ones direction of both inputs never acts and is taken out.
        """
        left, right = self.tensor.left, self.tensor.right
        left_bias, right_bias = self.left_bias, self.right_bias
        if bias is not None:
            left_bias, right_bias = left_bias + bias @ left, right_bias + bias @ right
        if gain is not None:
            left, right = gain[:, None] * left, gain[:, None] * right
        if centred:
            left, right = left - left.mean(0, keepdim=True), right - right.mean(0, keepdim=True)
        return QuadraticMap(
            tensor=replace(self.tensor, left=left, right=right),
            left_bias=left_bias,
            right_bias=right_bias,
            out_bias=self.out_bias,
        )

    def _second(self, x: Tensor, y: Tensor | None) -> Tensor:
        """What the right leg reads: y, or x where both legs read one input."""
        if y is None:
            _ = self.d_in
            return x
        return y
