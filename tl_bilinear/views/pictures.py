"""Eigenvectors of an interaction matrix as pictures, where the input is a picture."""

from typing import TYPE_CHECKING

import torch

from tl_bilinear.decompositions import Eigendecomposition
from tl_bilinear.views.figure import new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = "RdBu_r"


def eigenvector_figure(
    eigendecomposition: Eigendecomposition,
    labels: list[str],
    *,
    n_columns: int = 3,
) -> "Figure":
    """A row per direction: its eigenvectors of largest eigenvalue, then of most negative one.

    Red pixels have one sign and blue ones the other; an eigenvector's own sign means nothing. Each
    picture has the scale of its largest pixel, and its eigenvalue above it.

    Args:
        eigendecomposition: of a batch of directions, whose inputs are square pictures, row by row.
        labels: one per direction.
        n_columns: how many of each side; fewer where a side has not so many, left empty.

    Raises:
        ValueError: another shape, or labels that do not match.
    """
    values, vectors = eigendecomposition.eigenvalues, eigendecomposition.eigenvectors
    side = round(vectors.shape[-1] ** 0.5)
    if values.ndim != 2 or side * side != vectors.shape[-1]:
        raise ValueError(
            "eigenvectors of square pictures for a batch of directions are drawn, got eigenvectors "
            f"of shape {tuple(vectors.shape)}"
        )
    if len(labels) != len(values) or n_columns < 1:
        raise ValueError(
            f"{len(labels)} labels for {len(values)} directions, and {n_columns} columns: give one "
            "label each, and at least one column"
        )
    with style():
        figure = new_figure(6.4, 1.15 * len(values))
        grid = figure.subplots(len(values), 2 * n_columns, squeeze=False)
        for label, row, lambdas, pictures in zip(labels, grid, values, vectors, strict=True):
            for place, axes in enumerate(row):
                axes.set_xticks([])
                axes.set_yticks([])
                index = _index(lambdas, place % n_columns, positive=place < n_columns)
                if index is None:
                    axes.set_axis_off()
                    continue
                picture = pictures[index].detach().double().cpu().reshape(side, side)
                largest = float(picture.abs().max())
                axes.imshow(picture.numpy(), cmap=COLORS, vmin=-largest, vmax=largest)
                axes.set_title(f"λ {float(lambdas[index]):+.3g}", fontsize=7.5)
            row[0].set_axis_on()
            row[0].set_ylabel(label, rotation=0, labelpad=14, va="center")
    return figure


def _index(values: torch.Tensor, rank: int, *, positive: bool) -> int | None:
    """The index of the eigenvalue that is `rank`-th from one end; None beyond zero."""
    order = values.argsort(descending=positive)
    index = int(order[rank]) if rank < len(order) else None
    if index is None or (float(values[index]) > 0) != positive:
        return None
    return index
