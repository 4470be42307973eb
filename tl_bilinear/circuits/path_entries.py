"""The largest entries of one term along an output direction, streamed over the vocabulary."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_bilinear.circuits.path_forms import Fixed, Form, Rows
from tl_bilinear.circuits.virtual_source import BLOCK, VirtualSource


@dataclass(frozen=True)
class PathEntry:
    """One entry: what one token (or position), or two, add to the target through a term."""

    arguments: tuple[str, ...]
    """Token texts, or "position 3"; then the output token where no target was given."""
    ids: tuple[int, ...]
    """Token ids and positions."""
    value: float
    """In logits, every denominator one and every pattern one."""


@dataclass(frozen=True)
class PathEntries:
    """The entries of largest |value| of one term, first the largest."""

    term: str
    target: str
    """What it is read along; "" where the last argument of each entry is the output token."""
    places: tuple[str, ...]
    """What the arguments are, in their order."""
    rows: tuple[PathEntry, ...]
    unordered: bool
    """Whether (i, j) stands for (j, i) too: a head's two attended tokens."""

    def __str__(self) -> str:
        title = f"{self.term} for {self.target}" if self.target else self.term
        if self.places:
            title += f" ({' x '.join(self.places)}{', unordered' if self.unordered else ''})"
        names = [" ".join(map(repr, row.arguments)) or "(constant)" for row in self.rows]
        width = max(map(len, names), default=0)
        lines = [f"  {n:<{width}}  {r.value:+.4f}" for n, r in zip(names, self.rows, strict=True)]
        return "\n".join([title, *lines])


Found = tuple[Int[Tensor, "k axes"], Float[Tensor, " k"]]


def largest_along(form: Form, u: Float[Tensor, " d_model"], k: int, block: int = BLOCK) -> Found:
    """Indices and values of the k entries of largest magnitude of `u . term`.

    For Pairs O(rank d_model^2 + n_first n_second k_inner), k_inner being d_head where a head is
    among the two sources and d_model else, and O(block^2) memory: the table is never held.
    """
    if isinstance(form, Fixed):
        return torch.zeros(1, 0, dtype=torch.long), (form.vector @ u)[None]
    if isinstance(form, Rows):
        values = torch.cat([rows @ (form.matrix @ u) for _, rows in form.blocks(block)])
        order = values.abs().argsort(descending=True, stable=True)[:k]
        return order[:, None].cpu(), values[order].cpu()
    return largest_products(form.first, form.along(u), form.second, k, upper=form.same, block=block)


def largest_logits(
    form: Rows,
    readout: VirtualSource,
    final: Float[Tensor, "d_model d_model"],
    k: int,
    block: int = BLOCK,
) -> Found:
    """The k largest (argument, output token) entries of a term of one argument.

    O(n d_vocab d_model) time, O(block^2) memory.

    Args:
        readout: the unembedding's columns.
        final: what the final norm does to the stream, as a matrix from the right.
    """
    kept, matrix = _Largest(k), form.matrix @ final
    for i, rows in form.blocks(block):
        rows = rows @ matrix
        for j, columns in readout.blocks(block):
            kept.add(rows @ columns.T, i, j)
    return kept.found()


def largest_products(
    first: VirtualSource,
    matrix: Float[Tensor, "k_first k_second"],
    second: VirtualSource,
    k: int,
    *,
    upper: bool = False,
    block: int = BLOCK,
) -> Found:
    """The k largest of `first.inner_rows[i] matrix second.inner_rows[j]`. Memory O(block^2).

    Args:
        upper: i <= j only.
    """
    kept = _Largest(k)
    for i, rows in first.blocks(block):
        rows = rows @ matrix
        for j, columns in second.blocks(block):
            if not upper or j + len(columns) > i:
                kept.add(rows @ columns.T, i, j, upper=upper)
    return kept.found()


class _Largest:
    """Keeps the k entries of largest magnitude of a table that comes in tiles."""

    def __init__(self, k: int):
        self.k = k
        self._values = torch.zeros(0, dtype=torch.float64)
        self._places = torch.zeros(0, 2, dtype=torch.long)

    def add(self, tile: Tensor, row: int, column: int, *, upper: bool = False) -> None:
        """One tile at its place; with `upper` only entries i <= j of the whole table count."""
        if upper:
            tile = tile.triu(row - column)
        full = len(self._values) == self.k
        if full and float(tile.abs().max()) <= float(self._values[-1].abs()):
            return
        flat = tile.flatten()
        best = flat.abs().topk(min(self.k, flat.numel())).indices
        places = torch.stack([best // tile.shape[1] + row, best % tile.shape[1] + column], 1)
        values = flat[best]
        if upper:
            inside = places[:, 0] <= places[:, 1]
            places, values = places[inside], values[inside]
        values = torch.cat([self._values, values.cpu()])
        places = torch.cat([self._places, places.cpu()])
        order = values.abs().argsort(descending=True, stable=True)[: self.k]
        self._values, self._places = values[order], places[order]

    def found(self) -> Found:
        return self._places, self._values
