"""Modes of one MLP: the units that are attributed, shown and ablated."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Mode:
    """`(layer, u, lambda, v)`: adds `lambda (v.x)^2` to the layer's output along `u`.

    x is the MLP's input after its norm, before the norm's gain (which is folded into v). A mode
    that was read with frozen gates (its label says so) is one of a single token's map: v.x can
    be taken anywhere, but lambda (v.x)^2 adds to the model at that token alone.
    """

    layer: int
    direction: Float[Tensor, " d_out"]
    """u, in the MLP's output space; not normalised."""
    eigenvalue: float
    eigenvector: Float[Tensor, " d_in"]
    """v, of norm one, in the space of the normalised stream."""
    label: str = ""

    def activations(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch"]:
        """v.x, signed."""
        return x @ self.eigenvector.to(x)

    def contributions(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch"]:
        """lambda (v.x)^2, in units of u.y where y is the MLP's output."""
        return self.eigenvalue * self.activations(x) ** 2

    def __repr__(self) -> str:
        return f"Mode({self.label or f'L{self.layer} λ={self.eigenvalue:+.3g}'})"


@dataclass(frozen=True, eq=False, repr=False)
class OutputMode:
    """`(layer, u)`: what a layer's MLP writes along a direction, whatever made it write so."""

    layer: int
    direction: Float[Tensor, " d_out"]
    """u, in the MLP's output space; its length does not matter."""
    label: str = ""

    def __repr__(self) -> str:
        return f"OutputMode({self.label or f'L{self.layer}'})"


@dataclass(frozen=True, eq=False, repr=False)
class InputMode:
    """`(layer, v)`: all that a layer's MLP reads along a direction, in products of any kind."""

    layer: int
    direction: Float[Tensor, " d_in"]
    """v, in the space of the normalised stream (as a Mode's eigenvector); any length."""
    label: str = ""

    def __repr__(self) -> str:
        return f"InputMode({self.label or f'L{self.layer}'})"


def by_layer(modes: Iterable[Mode]) -> dict[int, list[Mode]]:
    """The modes of each layer, in their order; lower layers first."""
    layers: dict[int, list[Mode]] = {}
    for mode in modes:
        layers.setdefault(mode.layer, []).append(mode)
    return dict(sorted(layers.items()))


def stacked(
    modes: Sequence[Mode], name: Literal["direction", "eigenvector"]
) -> Float[Tensor, "mode d"]:
    """One row per mode, in float64 and on the first one's device."""
    device = modes[0].direction.device
    return torch.stack([getattr(mode, name).to(device) for mode in modes]).double()
