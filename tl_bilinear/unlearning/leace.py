"""LEACE: the smallest affine edit after which no linear probe finds a concept.

Belrose et al., "LEACE: Perfect linear concept erasure in closed form" (2306.03819), theorem 4.3:

    r(x) = x - W^+ P W (x - mean),   W = (Sigma_xx^(1/2))^+,  P the orthogonal projector on the
                                     columns of W Sigma_xz

Sigma_xx and Sigma_xz are the covariances of the activations, and with the concept's labels.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Directions with less of the largest variance than this hold no activations.
RANK_TOLERANCE = 1e-10


@dataclass(frozen=True, eq=False)
class Eraser:
    """r(x) = x - erased (x - mean)."""

    erased: Float[Tensor, "d d"]
    """W^+ P W, an oblique projection of the labels' rank."""
    mean: Float[Tensor, " d"]

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return x - (x - self.mean.to(x)) @ self.erased.to(x).mT


def fit_eraser(x: Float[Tensor, "example d"], z: Float[Tensor, "example label"]) -> Eraser:
    """The eraser of labels `z` (one-hot, or any numbers) from activations `x`; in float64.

    O(n d^2 + d^3).

    Raises:
        ValueError: fewer than two examples, counts that differ, or labels that never vary.
    """
    if len(x) != len(z) or len(x) < 2:
        raise ValueError(
            f"as many activations as labels and at least two are needed, got {len(x)} and {len(z)}"
        )
    x, z = x.detach().double(), z.detach().double()
    mean = x.mean(0)
    x, z = x - mean, z - z.mean(0)
    if not z.abs().max() > 0:
        raise ValueError("the labels never vary: there is no concept to erase")
    values, vectors = torch.linalg.eigh(x.mT @ x / len(x))
    kept = values > RANK_TOLERANCE * values.max()
    vectors, roots = vectors[:, kept], values[kept].sqrt()
    whitened = (vectors / roots) @ vectors.mT  # W
    coloured = (vectors * roots) @ vectors.mT  # W^+
    left, strengths, _ = torch.linalg.svd(whitened @ (x.mT @ z / len(x)), full_matrices=False)
    basis = left[:, strengths > 1e-8 * strengths.max().clamp_min(1e-300)]
    return Eraser(coloured @ basis @ basis.mT @ whitened, mean)
