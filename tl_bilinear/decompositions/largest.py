"""The k entries of largest magnitude of a matrix's upper triangle that comes in blocks."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Largest:
    """Keeps the k entries i < j of largest magnitude; equal ones by the lower (i, j).

    A block whose rows all stay below the k-th magnitude found so far costs one pass over it.
    """

    def __init__(self, k: int):
        self.k = k
        self._magnitudes = torch.zeros(0)
        self._pairs = torch.zeros(0, 2, dtype=torch.long)

    def add(
        self,
        block: Float[Tensor, "rows columns"],
        squares: Float[Tensor, "rows columns"],
        first_row: int,
        first_column: int,
    ) -> None:
        """Look through one block, `squares` its entries squared, at its place in the matrix."""
        full = len(self._magnitudes) == self.k
        threshold = float(self._magnitudes[-1]) if full else 0.0
        # Squares only choose the rows: rounding keeps their order, so that no row is missed.
        floor = torch.tensor(threshold, dtype=block.dtype).square().to(block.device)
        rows = (squares.amax(1) >= floor).nonzero()[:, 0]
        if not len(rows):
            return
        chosen = block[rows].abs()
        inside = rows[:, None] + first_row < torch.arange(
            first_column, first_column + block.shape[1], device=block.device
        )
        places = ((chosen >= threshold) & inside).nonzero()
        magnitudes = chosen[places[:, 0], places[:, 1]]
        pairs = torch.stack([rows[places[:, 0]] + first_row, places[:, 1] + first_column], 1)
        kept = _largest(magnitudes, self.k)
        self._merge(magnitudes[kept].cpu(), pairs[kept].cpu())

    def pairs(self) -> Int[Tensor, "k 2"]:
        """(i, j) of the kept entries, by falling magnitude."""
        return self._pairs

    def _merge(self, magnitudes: Tensor, pairs: Tensor) -> None:
        magnitudes = torch.cat([self._magnitudes.to(magnitudes), magnitudes])
        pairs = torch.cat([self._pairs, pairs])
        for column in (1, 0):
            order = pairs[:, column].argsort(stable=True)
            magnitudes, pairs = magnitudes[order], pairs[order]
        order = magnitudes.argsort(descending=True, stable=True)[: self.k]
        self._magnitudes, self._pairs = magnitudes[order], pairs[order]


def _largest(magnitudes: Float[Tensor, " m"], k: int) -> Int[Tensor, " kept"]:
    """Indices of the k largest; of those that equal the k-th, the first ones."""
    if len(magnitudes) <= k:
        return torch.arange(len(magnitudes), device=magnitudes.device)
    last = magnitudes.topk(k).values[-1]
    above = (magnitudes > last).nonzero()[:, 0]
    equal = (magnitudes == last).nonzero()[: k - len(above), 0]
    return torch.cat([above, equal])
