"""One MLP without biases, bilinear, gated or pointwise, as a plain module."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from tl_bilinear.tensor import BilinearTensor

Activation = Literal["bilinear", "swiglu", "geglu", "relu", "tanh", "sigmoid"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

_GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "bilinear": lambda g: g,
    "swiglu": functional.silu,
    "geglu": functional.gelu,
}
_POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class MLP(nn.Module):
    """`(act(x W_gate) * (x W_in)) W_out`, or `act(x W_in) W_out` where the activation has no gate.

    Weights are [size_in, size_out], as TransformerLens stores them, and begin as Gaussians of
    variance `1 / size_in`, drawn from torch's generator.

    Raises:
        ValueError: an unknown activation.
    """

    def __init__(self, d_in: int, d_mlp: int, d_out: int, activation: Activation = "bilinear"):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"`activation` must be one of {ACTIVATIONS}, got {activation!r}")
        self.activation: Activation = activation
        self.W_gate = gaussian(d_in, d_mlp) if activation in _GATES else None
        self.W_in = gaussian(d_in, d_mlp)
        self.W_out = gaussian(d_mlp, d_out)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return self.hidden(x) @ self.W_out

    def hidden(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_mlp"]:
        """What W_out reads."""
        gate = None if self.W_gate is None else x @ self.W_gate
        return activated(self.activation, gate, x @ self.W_in)

    def tensor(self) -> BilinearTensor:
        """The whole MLP, exactly; the factors are the parameters, without gradient.

        Raises:
            ValueError: the MLP is not bilinear.
        """
        if self.activation != "bilinear" or self.W_gate is None:
            raise ValueError(
                f"only a bilinear MLP is a BilinearTensor, and this one is {self.activation}: take "
                'a model with `activation="bilinear"`'
            )
        return BilinearTensor(
            left=self.W_gate.detach(), right=self.W_in.detach(), out=self.W_out.detach().T
        )


def activated(
    activation: Activation,
    gate: Float[Tensor, "*batch d_mlp"] | None,
    value: Float[Tensor, "*batch d_mlp"],
) -> Float[Tensor, "*batch d_mlp"]:
    """What W_out reads, from what the gate's matrix gives (None without a gate) and W_in."""
    if gate is None:
        return _POINTWISE[activation](value)
    return _GATES[activation](gate) * value


def equal_parameters(d_mlp: int, activation: Activation) -> int:
    """The d_mlp at which an MLP of equal d_in and d_out has as many weights as a gated one.

    Raises:
        ValueError: an odd `d_mlp`, for which there is none without a gate.
    """
    if activation in _GATES:
        return d_mlp
    if d_mlp % 2:
        raise ValueError(
            f"`d_mlp` is {d_mlp}: give an even number, since an MLP without a gate gets 3/2 of it"
        )
    return d_mlp * 3 // 2


def gaussian(size_in: int, size_out: int) -> nn.Parameter:
    """A matrix of variance 1 / size_in."""
    return nn.Parameter(torch.randn(size_in, size_out) / size_in**0.5)
