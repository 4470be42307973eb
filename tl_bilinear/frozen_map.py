"""A gated layer on given inputs: a quadratic map per input, the gate's slope held fixed.

    f(x_t) = out ((s_t * (left^T x_t + left_bias)) * (right^T x_t + right_bias)) + out_bias

A gate act(g) is its slope s(g) = act(g)/g times g: silu(g) = g sigma(g), gelu(g) = g Phi(g),
relu(g) = g [g > 0]. With s_t taken from the forward pass, each token has a `QuadraticMap` of
its own, whose left factor and left bias are scaled by s_t. It is exact on that token and says
nothing about another: how the slope itself depends on the input is not in it.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tl_bilinear.quadratic_map import QuadraticMap
from tl_bilinear.tensor import BilinearTensor


@dataclass(frozen=True, eq=False)
class FrozenMap:
    """One `x -> B_t(x) + A_t x + c_t` per token t, factored: the weights are shared.

    Raises:
        ValueError: slopes that do not fit the weights' rank, or inputs that are not one per
            slope.
    """

    weights: QuadraticMap
    """The layer as if its slopes were one."""
    slope: Float[Tensor, "*batch rank"]
    """act(g)/g of each token and hidden unit."""

    def __post_init__(self):
        if self.slope.shape[-1:] != (self.weights.tensor.rank,):
            raise ValueError(
                f"`slope` must have {self.weights.tensor.rank} entries on its last axis (the rank "
                f"of the weights), got shape {tuple(self.slope.shape)}"
            )

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The layer's value at the tokens whose slopes these are. O(rank * d) per token."""
        self._require_own_tokens(x)
        tensor = self.weights.tensor
        left = x @ tensor.left + self.weights.left_bias
        right = x @ tensor.right + self.weights.right_bias
        return (self.slope * left * right) @ tensor.out.T + self.weights.out_bias

    def quadratic(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """B_t(x_t). O(rank * d) per token."""
        self._require_own_tokens(x)
        tensor = self.weights.tensor
        return (self.slope * (x @ tensor.left) * (x @ tensor.right)) @ tensor.out.T

    def linear(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """A_t x_t. O(rank * d) per token."""
        self._require_own_tokens(x)
        tensor, left_bias, right_bias = (
            self.weights.tensor,
            self.weights.left_bias,
            self.weights.right_bias,
        )
        mixed = left_bias * (x @ tensor.right) + right_bias * (x @ tensor.left)
        return (self.slope * mixed) @ tensor.out.T

    def constant(self) -> Float[Tensor, "*batch d_out"]:
        """c_t."""
        product = self.slope * self.weights.left_bias * self.weights.right_bias
        return product @ self.weights.tensor.out.T + self.weights.out_bias

    def at(self, *index: int) -> QuadraticMap:
        """The map of one token, its left factor and left bias scaled; copies rank * d numbers."""
        slope = self.slope[index]
        if slope.ndim != 1:
            raise ValueError(
                f"`at` needs one index per axis of {tuple(self.slope.shape[:-1])} (batch and "
                f"position), got {index}"
            )
        tensor = self.weights.tensor
        return QuadraticMap(
            tensor=BilinearTensor(tensor.left * slope, tensor.right, tensor.out),
            left_bias=self.weights.left_bias * slope,
            right_bias=self.weights.right_bias,
            out_bias=self.weights.out_bias,
        )

    def _require_own_tokens(self, x: Tensor) -> None:
        if x.shape[:-1] != self.slope.shape[:-1]:
            raise ValueError(
                f"the slopes belong to inputs of shape {tuple(self.slope.shape[:-1])}, got "
                f"{tuple(x.shape[:-1])}: freeze the gates on these inputs (host.frozen_mlp_map)"
            )
