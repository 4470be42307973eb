"""Edits of few terms per layer: how one is cut from a full edit, and how one is stepped from.

The matrices of one rank are curved. A step from one of them moves in their tangent space there,
both factors at once, and the result is cut back to the rank, which changes it to second order
(Absil, Mahony and Sepulchre, Optimization Algorithms on Matrix Manifolds, 2008, chapter 8.3;
Vandereycken, 1209.3834, section 2).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.unlearning.layer_basis import WhitenedGradients


def cut(
    x: Float[Tensor, "feature writer"], rank: int
) -> tuple[Float[Tensor, "feature term"], Float[Tensor, "term writer"]]:
    """The nearest matrix of this rank or less, as two factors; the second has orthonormal rows."""
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    kept = min(rank, len(s))
    return u[:, :kept] * s[:kept], vh[:kept]


def cut_all(x: Mapping[int, Tensor], rank: int) -> dict[int, Tensor]:
    """Every layer's, put together again."""
    found = {layer: cut(each, rank) for layer, each in x.items()}
    return {layer: left @ right for layer, (left, right) in found.items()}


@dataclass(frozen=True, eq=False)
class TangentGradients:
    """A layer's Jacobian along the matrices of one rank at x, in whitened coordinates.

    With the singular vectors U, V of x a direction Z has the tangent part
    U U^T Z + (1 - U U^T) Z V V^T: two Jacobians with few parameters each, orthogonal to each other.
    """

    writers_move: WhitenedGradients
    """By U^T Z."""
    readers_move: WhitenedGradients
    """By (1 - U U^T) Z V."""
    left: Float[Tensor, "feature term"]
    right: Float[Tensor, "term writer"]

    @classmethod
    def at(
        cls, x: Float[Tensor, "feature writer"], rank: int, whole: WhitenedGradients
    ) -> "TangentGradients":
        """Of the Jacobian at an x of this rank; below it the missing terms are any."""
        u, _, vh = torch.linalg.svd(x.double(), full_matrices=False)
        left, right = u[:, :rank].to(whole.features), vh[:rank].to(whole.readings)
        read = whole.features @ left
        return cls(
            replace(whole, features=read),
            replace(
                whole,
                features=whole.features - read @ left.mT,
                readings=whole.readings @ right.mT,
            ),
            left,
            right,
        )

    def kernel(self) -> Float[Tensor, "site site"]:
        """J J^T."""
        return self.writers_move.kernel() + self.readers_move.kernel()

    def pull_back(self, weights: Float[Tensor, " site"]) -> Float[Tensor, "feature writer"]:
        """J^T weights, a tangent direction."""
        written = self.writers_move.pull_back(weights)
        return self.left @ written + self.readers_move.pull_back(weights) @ self.right

    def push(self, direction: Float[Tensor, "feature writer"]) -> Float[Tensor, " site"]:
        """J direction, for a tangent one."""
        direction = direction.to(self.left)
        written = self.left.mT @ direction
        read = (direction - self.left @ written) @ self.right.mT
        return self.writers_move.push(written) + self.readers_move.push(read)
