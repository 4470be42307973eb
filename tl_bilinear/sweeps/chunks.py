"""Chunks: what is computed at once and kept in one file."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Chunk:
    """Directions start to stop of one layer."""

    layer: int
    start: int
    stop: int

    def __str__(self) -> str:
        return f"layer {self.layer}, directions {self.start}-{self.stop - 1}"


def chunks_of(layers: Sequence[int], n_directions: int, size: int) -> tuple[Chunk, ...]:
    """Every chunk of a sweep, in the order of layers and directions."""
    return tuple(
        Chunk(layer, start, min(start + size, n_directions))
        for layer in layers
        for start in range(0, n_directions, size)
    )
