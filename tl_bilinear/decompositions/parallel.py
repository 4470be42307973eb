"""Directions that are one and the same, up to sign and a small angle."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def group_rows(
    rows: Float[Tensor, "row d"], cosine: float
) -> tuple[Float[Tensor, "group d"], Int[Tensor, " row"], Float[Tensor, " row"]]:
    """Rows of length one that stand apart; to which of them each row belongs, with which sign.

    In order: each row that belongs to none yet takes all that are left within |cosine|. In NumPy:
    many small steps, which cost PyTorch several times as much.

    Cost: O(groups * rows * d).
    """
    array = rows.detach().cpu().numpy()
    first: list[int] = []
    group = np.zeros(len(array), dtype=np.int64)
    signs = np.ones(len(array))
    left = np.arange(len(array))
    while len(left):
        cosines = array[left] @ array[left[0]]
        near = np.abs(cosines) >= cosine
        near[0] = True
        members = left[near]
        group[members] = len(first)
        signs[members] = np.sign(cosines[near])
        first.append(int(left[0]))
        left = left[~near]
    return rows[first], torch.from_numpy(group).to(rows.device), torch.from_numpy(signs).to(rows)
