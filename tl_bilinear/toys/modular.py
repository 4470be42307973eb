"""Two operations modulo a prime: all pairs, their targets, and a split by seed.

The task of the unlearning experiments: one set of weights computes a + b and a b (or a - b) mod p,
and one of the two is to be cut out. After 2602.05635, whose own sizes are not published.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Operation = Literal["add", "sub", "mul"]
Split = Literal["train", "test", "all"]

_VALUES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
}


@dataclass(frozen=True)
class ModularTask:
    """Operations on all p^2 pairs (a, b); checked on creation (ValueError).

    Attributes:
        p: the modulus, a prime.
        operations: different ones of "add", "sub" and "mul".
        train_share: the share of the pairs that is trained on, of each operation.
        seed: of the split, which is another one for each operation.
    """

    p: int = 31
    operations: tuple[Operation, ...] = ("add", "mul")
    train_share: float = 0.8
    seed: int = 0

    def __post_init__(self):
        if self.p < 3 or any(self.p % n == 0 for n in range(2, int(self.p**0.5) + 1)):
            raise ValueError(f"`p` must be a prime of at least 3, got {self.p}")
        known = get_args(Operation)
        wrong = [each for each in self.operations if each not in known]
        if wrong or not self.operations or len(set(self.operations)) < len(self.operations):
            raise ValueError(
                f"`operations` must be different ones of {known}, got {self.operations}"
            )
        if not 0 < self.train_share < 1:
            raise ValueError(f"`train_share` must be between 0 and 1, got {self.train_share}")

    @property
    def chance(self) -> float:
        """The accuracy of guessing; for "mul" the constant answer 0 has (2p - 1) / p^2."""
        return 1 / self.p

    @cached_property
    def pairs(self) -> Int[Tensor, "pair 2"]:
        """(0, 0), (0, 1), ..., (p - 1, p - 1)."""
        numbers = torch.arange(self.p)
        return torch.cartesian_prod(numbers, numbers)

    @cached_property
    def targets(self) -> Int[Tensor, "operation pair"]:
        """The right answer of each operation to each of `pairs`."""
        a, b = self.pairs.unbind(-1)
        return torch.stack([_VALUES[each](a, b) % self.p for each in self.operations])

    @cached_property
    def trained(self) -> Bool[Tensor, "operation pair"]:
        """Which of `pairs` belong to the training part of each operation."""
        generator = torch.Generator().manual_seed(self.seed)
        n_pairs = self.p**2
        mask = torch.zeros(len(self.operations), n_pairs, dtype=torch.bool)
        for row in mask:
            order = torch.randperm(n_pairs, generator=generator)
            row[order[: round(self.train_share * n_pairs)]] = True
        return mask

    def part(self, split: Split) -> Bool[Tensor, "operation pair"]:
        """Which of `pairs` belong to "train", "test" or "all".

        Raises:
            ValueError: another name.
        """
        if split not in get_args(Split):
            raise ValueError(f"`split` must be one of {get_args(Split)}, got {split!r}")
        if split == "all":
            return torch.ones_like(self.trained)
        return self.trained if split == "train" else ~self.trained

    def accuracy(
        self, logits: Float[Tensor, "operation pair answer"], split: Split = "test"
    ) -> dict[str, float]:
        """By operation, the share of the part's pairs whose largest logit is the target's.

        Args:
            logits: of all pairs, in the order of `pairs`: what a ModularModel makes of them.
        """
        right = (logits.argmax(-1).cpu() == self.targets).double()
        return {
            each: float(row[chosen].mean())
            for each, row, chosen in zip(self.operations, right, self.part(split), strict=True)
        }
