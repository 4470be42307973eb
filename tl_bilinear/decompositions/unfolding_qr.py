"""Singular values of an unfolding without squaring it: QR of its rows as they stream past.

The Gram route finds singular values to the square root of rounding; this one to rounding, relative
to the largest. Rows are made one slice at a time and folded into one triangle of d x d.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.tensor import BilinearTensor


def unfolding_svd(
    tensor: BilinearTensor, mode: str, symmetric: bool
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n size"]]:
    """Singular values and vectors (rows) of the unfolding of `mode`: "out", "left" or "right".

    O(d^3 rank + d^4) operations, O(d^2) memory beside the factors: between the Gram route and the
    dense SVD.
    """
    if symmetric:
        tensor = tensor.symmetrized()
    triangle = _triangle(tensor, mode, mirrored=symmetric and mode == "out")
    _, values, rows = torch.linalg.svd(triangle, full_matrices=False)
    return values, rows


def _triangle(tensor: BilinearTensor, mode: str, mirrored: bool) -> Float[Tensor, "n size"]:
    """R of the QR of the unfolding, its `mode` along the columns.

    `mirrored`: B[o, i, j] = B[o, j, i], so pairs i < j are taken once, scaled by sqrt(2).
    """
    columns = getattr(tensor, mode)
    first, second = (getattr(tensor, leg) for leg in ("out", "left", "right") if leg != mode)
    size = columns.shape[0]
    triangle = columns.new_zeros(0, size)
    waiting: list[Tensor] = []
    for index, weights in enumerate(first):
        slab = ((second[index:] if mirrored else second) * weights) @ columns.T
        if mirrored:
            slab[1:] *= 2**0.5
        waiting.append(slab)
        # Four times as many rows as the triangle has: its own share of the work stays small.
        if sum(len(rows) for rows in waiting) >= 4 * size:
            triangle, waiting = _fold(triangle, waiting), []
    return _fold(triangle, waiting)


def _fold(triangle: Tensor, waiting: list[Tensor]) -> Tensor:
    return torch.linalg.qr(torch.cat([triangle, *waiting]), mode="r").R
