"""The largest entries of a table of pairs, and how a few of them are written down."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor


def pair_rows(
    table: Float[Tensor, "rows columns"], k: int, *, symmetric: bool
) -> tuple[tuple[int, int, float], ...]:
    """The k entries of largest magnitude: (row, column, value); ties keep the earlier.

    Args:
        symmetric: of a symmetric table the unordered pairs, i <= j, with twice the entry where
            i < j.
    """
    if symmetric:
        table = table.triu() + table.tril(-1).mT
        i, j = torch.triu_indices(*table.shape, device=table.device)
    else:
        i, j = torch.ones_like(table).nonzero().T
    values = table[i, j]
    order = values.abs().argsort(descending=True, stable=True)[:k]
    places = zip(i[order].tolist(), j[order].tolist(), values[order].tolist(), strict=True)
    return tuple(places)


def table_text(title: str, rows: Iterable[tuple[object, object, float]], total: float) -> str:
    """A title, one line per pair, and what the pairs that are not shown add."""
    rows = list(rows)
    names = [f"{a} x {b}" for a, b, _ in rows]
    width = max(map(len, [*names, "all others"]))
    lines = [f"  {name:<{width}}  {row[2]:+.4f}" for name, row in zip(names, rows, strict=True)]
    rest = total - sum(value for _, _, value in rows)
    return "\n".join([title, *lines, f"  {'all others':<{width}}  {rest:+.4f}"])
