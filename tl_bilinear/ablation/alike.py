"""Modes of one layer that were given twice: one and the same up to length, sign and rounding."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

NEAR = math.cos(5e-3)
"""|Cosine| from which two directions, or two eigenvectors, are one. Rounding to bfloat16 turns
them by 2e-3 radians; taken for two, they would be told apart by one over that."""

SAME_VALUE = 0.01
"""Relative difference up to which two eigenvalues of one direction and eigenvector are one."""


def given_once(
    group: Int[Tensor, " mode"], values: Float[Tensor, " mode"], vectors: Float[Tensor, "mode d"]
) -> Int[Tensor, " kept"]:
    """The modes without those that were given before, in another length or sign perhaps.

    Cost: O(modes * d) times the modes of one direction.
    """
    groups, numbers = group.cpu().numpy(), values.detach().cpu().numpy()
    array = vectors.detach().cpu().numpy()
    units = array / np.linalg.norm(array, axis=1, keepdims=True)
    again = np.zeros(len(groups), dtype=bool)
    order = np.argsort(groups, kind="stable")
    for places in np.split(order, np.cumsum(np.bincount(groups))[:-1]):
        if len(places) > 1:
            again[places] = _given_before(units[places], numbers[places])
    return torch.from_numpy(np.flatnonzero(~again)).to(group.device)


def _given_before(units: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Whether an earlier row that counts is the same one."""
    same = np.abs(units @ units.T) >= NEAR
    same &= np.abs(values[:, None] - values) <= SAME_VALUE * np.abs(values)
    again = np.zeros(len(units), dtype=bool)
    for row in np.flatnonzero(same.sum(1) > 1):
        if not again[row]:
            again[row + 1 :] |= same[row, row + 1 :]
    return again
