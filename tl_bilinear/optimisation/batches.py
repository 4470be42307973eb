"""Batches as functions of the step alone, so that a resumed run reads what it would have read."""

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

_STRIDE = 1_000_003  # between the seeds of neighbouring runs: their steps do not overlap


@dataclass(frozen=True, eq=False)
class TokenWindows:
    """Random windows of one token stream; `windows(step)` is a function of (seed, step).

    Raises:
        ValueError: fewer tokens than a window, or a size below one.
    """

    data: Int[Tensor, " n_tokens"]
    batch_size: int
    window: int
    seed: int = 0

    def __post_init__(self):
        if self.batch_size < 1 or self.window < 2:
            raise ValueError(
                f"`batch_size` is {self.batch_size} and `window` {self.window}: give at least one "
                "window of at least two tokens"
            )
        if len(self.data) < self.window:
            raise ValueError(
                f"the data has {len(self.data)} tokens, fewer than a window of {self.window}: "
                "give more text or a smaller window"
            )

    def __call__(self, step: int) -> Int[Tensor, "batch window"]:
        generator = torch.Generator().manual_seed(self.seed * _STRIDE + step)
        last = len(self.data) - self.window + 1
        starts = torch.randint(0, last, (self.batch_size,), generator=generator)
        return self.data[starts[:, None] + torch.arange(self.window)]

    def fingerprint(self) -> str:
        """16 hex digits of the data and the sizes."""
        return _digest(self.data, self.batch_size, self.window, self.seed)


@dataclass(frozen=True, eq=False)
class ShuffledBatches:
    """Pairs (x, y) in a new order each epoch; the last, smaller batch of an epoch is left out.

    Raises:
        ValueError: x and y of different lengths, or fewer examples than a batch.
    """

    x: Shaped[Tensor, "example ..."]
    y: Shaped[Tensor, "example ..."]
    batch_size: int
    seed: int = 0

    def __post_init__(self):
        if len(self.x) != len(self.y):
            raise ValueError(f"`x` has {len(self.x)} examples and `y` {len(self.y)}: give pairs")
        if not 1 <= self.batch_size <= len(self.x):
            raise ValueError(
                f"`batch_size` must be between 1 and the {len(self.x)} examples, got "
                f"{self.batch_size}"
            )

    @property
    def steps_per_epoch(self) -> int:
        return len(self.x) // self.batch_size

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(self.seed * _STRIDE + epoch)
        order = torch.randperm(len(self.x), generator=generator)
        rows = order[place * self.batch_size : (place + 1) * self.batch_size]
        return self.x[rows], self.y[rows]

    def fingerprint(self) -> str:
        """16 hex digits of the data and the sizes."""
        return _digest(self.x, _digest(self.y), self.batch_size, self.seed)


def _digest(data: Tensor, *settings: object) -> str:
    digest = hashlib.sha256(repr((tuple(data.shape), str(data.dtype), settings)).encode())
    digest.update(data.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
