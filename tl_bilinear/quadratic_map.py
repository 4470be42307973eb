"""A bilinear layer with its biases: quadratic, linear and constant part, kept apart.

    f(x) = out ((left^T x + left_bias) * (right^T x + right_bias)) + out_bias
         = B(x) + A x + c

with A x = out (left_bias * right^T x + right_bias * left^T x) and
c = out (left_bias * right_bias) + out_bias (2410.08417 appendix L). Modes are
eigenvectors of B alone: the homogeneous coordinate [x; 1] would make them depend on the
constant's scale.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tl_bilinear.tensor import BilinearTensor


@dataclass(frozen=True, eq=False)
class QuadraticMap:
    """`x -> B(x) + A x + c`, factored."""

    tensor: BilinearTensor
    """The quadratic part B."""
    left_bias: Float[Tensor, " rank"]
    """Added to `left^T x` inside the product (`b_gate` of an MLP, norm bias folded in)."""
    right_bias: Float[Tensor, " rank"]
    """Added to `right^T x` inside the product (`b_in` of an MLP, norm bias folded in)."""
    out_bias: Float[Tensor, " d_out"]
    """Added to the output (`b_out` of an MLP)."""

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The layer's value, computed as one product. O(rank * d) per vector."""
        left = x @ self.tensor.left + self.left_bias
        right = x @ self.tensor.right + self.right_bias
        return (left * right) @ self.tensor.out.T + self.out_bias

    def quadratic(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """B(x)."""
        return self.tensor(x)

    def linear(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """A x. O(rank * d) per vector; A is never built."""
        mixed = self.left_bias * (x @ self.tensor.right) + self.right_bias * (x @ self.tensor.left)
        return mixed @ self.tensor.out.T

    def constant(self) -> Float[Tensor, " d_out"]:
        """c, the value at x = 0."""
        return (self.left_bias * self.right_bias) @ self.tensor.out.T + self.out_bias

    def linear_map(self) -> Float[Tensor, "d_out d_in"]:
        """A as a matrix. O(rank * d^2)."""
        factor = self.tensor.right * self.left_bias + self.tensor.left * self.right_bias
        return self.tensor.out @ factor.T

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
            tensor=BilinearTensor(left, right, self.tensor.out),
            left_bias=left_bias,
            right_bias=right_bias,
            out_bias=self.out_bias,
        )
