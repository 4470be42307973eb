"""Virtual tokens: what each token (or position) gives the MLP to read, directly or through a head.

The MLP of a one-layer model reads a sum of these vectors: a token's embedding, a head's OV image
of an embedding, the same of a position, and biases ([E ; OV_1 E ; ... ; OV_H E], papers' "virtual
token basis"). They come from the weights; the norms' denominators, by which they are divided on a
prompt, are named beside them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Argument = Literal["token", "position"] | None

BLOCK = 2048
"""Rows of the vocabulary that are worked on at once."""


@dataclass(frozen=True, eq=False)
class VirtualSource:
    """A family of vectors of the stream, `base[i] inner outer` for each token or position i."""

    name: str
    argument: Argument
    """What i counts; None for a single vector that depends on nothing."""
    base: Float[Tensor, "n d_base"]
    """The model's own table, in its dtype: not copied."""
    head: int | None
    """Whose pattern says how much of which position's vector arrives; None at the position
    itself."""
    denominators: Mapping[str, int]
    """Norms that divide it on its way into the stream."""
    inner: Float[Tensor, "d_base k"] | None = None
    outer: Float[Tensor, "k d_model"] | None = None

    @property
    def n(self) -> int:
        return len(self.base)

    @property
    def place(self) -> str | None:
        """The argument in words."""
        if self.argument is None:
            return None
        return self.argument if self.head is None else f"attended {self.argument} (H{self.head})"

    def inner_rows(self, start: int = 0, stop: int | None = None) -> Float[Tensor, "rows k"]:
        """`base inner` of some rows, in float64."""
        rows = self.base[start:stop].double()
        return rows if self.inner is None else rows @ self.inner

    def rows(self, start: int = 0, stop: int | None = None) -> Float[Tensor, "rows d_model"]:
        """The vectors of some rows, in float64."""
        return self.through(self.inner_rows(start, stop))

    def through(self, rows: Float[Tensor, "*rows k"]) -> Float[Tensor, "*rows d_model"]:
        """`rows outer`: from where the rows are small into the stream."""
        return rows if self.outer is None else rows @ self.outer

    def outward(self, matrix: Float[Tensor, "d_model m"]) -> Float[Tensor, "k m"]:
        """`outer matrix`."""
        return matrix if self.outer is None else self.outer @ matrix

    def blocks(self, block: int = BLOCK) -> Iterator[tuple[int, Float[Tensor, "rows k"]]]:
        """(first row, `inner_rows`) of the whole family, some rows at a time."""
        for start in range(0, self.n, block):
            yield start, self.inner_rows(start, start + block)

    def restricted(self, ids: Int[Tensor, " m"] | None) -> "VirtualSource":
        """Of these tokens only; positions and biases stay as they are."""
        if ids is None or self.argument != "token":
            return self
        return replace(self, base=self.base[ids.to(self.base.device)])


def square_root(source: VirtualSource, gram: Float[Tensor, "d_base d_base"]) -> Tensor:
    """F [k, d_model] with F^T F the family's Gram matrix sum_i x_i x_i^T.

    Args:
        gram: of the base, `base^T base` (`base_gram`). O(d_base^2 k + k^3).
    """
    if source.inner is not None:
        gram = source.inner.T @ gram @ source.inner
    values, vectors = torch.linalg.eigh(gram)
    return source.through(values.clamp_min(0).sqrt()[:, None] * vectors.T)


def base_gram(base: Float[Tensor, "n d"], block: int = BLOCK) -> Float[Tensor, "d d"]:
    """`base^T base` in float64, streamed. O(n d^2) time, O(d^2 + block d) memory."""
    gram = base.new_zeros(base.shape[1], base.shape[1], dtype=torch.float64)
    for start in range(0, len(base), block):
        rows = base[start : start + block].double()
        gram += rows.T @ rows
    return gram
