"""The 1,797 handwritten digits of 8x8 pixels that scikit-learn carries, bundled in the zoo."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tl_bilinear.toys.stored import TOYS, read_safetensors

Split = Literal["train", "test", "all"]

SIDE = 8
_BRIGHTEST = 16


@dataclass(frozen=True)
class Digits:
    """Pictures, labels and a split; checked on creation (ValueError).

    Attributes:
        n_test: how many pictures are held out.
        seed: of the permutation of the pictures' indices whose first `n_test` are held out.
    """

    n_test: int = 360
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.n_test < len(self.labels):
            raise ValueError(
                f"`n_test` must be between 1 and {len(self.labels) - 1}, got {self.n_test}"
            )

    @cached_property
    def _stored(self) -> dict[str, Tensor]:
        return read_safetensors(TOYS / "digits" / "images.safetensors", ("images", "labels"))

    @property
    def images(self) -> Float[Tensor, "picture n_pixels"]:
        """Pixels row by row, 0 (paper) to 1 (ink), in scikit-learn's order."""
        return self._stored["images"].flatten(1).float() / _BRIGHTEST

    @property
    def labels(self) -> Int[Tensor, " picture"]:
        """0 to 9."""
        return self._stored["labels"].long()

    @cached_property
    def held_out(self) -> Bool[Tensor, " picture"]:
        """Which pictures are not trained on."""
        generator = torch.Generator().manual_seed(self.seed)
        mask = torch.zeros(len(self.labels), dtype=torch.bool)
        mask[torch.randperm(len(mask), generator=generator)[: self.n_test]] = True
        return mask

    def part(
        self, split: Split
    ) -> tuple[Float[Tensor, "picture n_pixels"], Int[Tensor, " picture"]]:
        """Pictures and labels of "train", "test" or "all", in order.

        Raises:
            ValueError: another name.
        """
        if split not in get_args(Split):
            raise ValueError(f"`split` must be one of {get_args(Split)}, got {split!r}")
        if split == "all":
            return self.images, self.labels
        chosen = self.held_out if split == "test" else ~self.held_out
        return self.images[chosen], self.labels[chosen]

    def accuracy(self, model: nn.Module, split: Split = "test") -> float:
        """The share of a part's pictures whose largest logit is the label's."""
        images, labels = self.part(split)
        with torch.no_grad():
            dtype = next(model.parameters()).dtype
            return float((model(images.to(dtype)).argmax(-1) == labels).double().mean())
