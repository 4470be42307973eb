"""How many forward and backward passes something takes: the coin in which budgets are compared."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tl_bilinear.hosts import get_host


@dataclass
class Passes:
    """Counted while they happen; a pass is one call of the model, whatever its batch."""

    forward: int = 0
    backward: int = 0
    tokens: int = 0
    """Positions of all forward passes, padding included."""

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(
            self.forward + other.forward,
            self.backward + other.backward,
            self.tokens + other.tokens,
        )


@contextmanager
def count_passes(model: Any) -> Iterator[Passes]:
    """Count a model's passes, at its first block; the hook is taken off again."""
    found = Passes()

    def forward(module: Any, inputs: Any, output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output
        found.forward += 1
        if isinstance(value, Tensor):
            found.tokens += value.shape[0] * value.shape[1]
            if value.requires_grad:
                value.register_hook(lambda gradient: backward())

    def backward() -> None:
        found.backward += 1

    handle = get_host(model).model.blocks[0].register_forward_hook(forward)
    try:
        yield found
    finally:
        handle.remove()
