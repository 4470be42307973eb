"""Q(u) as an operator: products with blocks of vectors, factored until building Q is cheaper.

A factored product costs 8 d rank operations per vector and is bound by reading the factors where
the vectors are few; with Q built (2 d^2 rank operations, once) it costs 2 d^2. How many products a
Krylov method will want is not known beforehand, so Q is built once those that it expects, or those
already made, cost more than building it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.tensor import BilinearTensor

BLOCK = 256  # columns of a factor at a time: they stay in cache between their two uses
FEW = 32  # reading the factors costs as much as this many vectors


def interaction_matrix(
    tensor: BilinearTensor, weights: Float[Tensor, " rank"]
) -> Float[Tensor, "d_left d_right"]:
    """`left diag(weights) right^T` in the dtype of `weights`, symmetrised for one input.

    Summed over blocks of the rank axis, so that no copy of the factors is made.
    """
    step = max(BLOCK, 2 * min(tensor.d_left, tensor.d_right))
    if tensor.shared_input:
        weights = weights / 2
    matrix = None
    for start in range(0, tensor.rank, step):
        part = slice(start, start + step)
        left = tensor.left[:, part].to(weights.dtype) * weights[part]
        right = tensor.right[:, part].to(weights.dtype).T
        # The backward pass of addmm_ does not need the sum that it overwrites.
        matrix = left @ right if matrix is None else matrix.addmm_(left, right)
    if matrix is None:  # a tensor of rank zero
        return weights.new_zeros(tensor.d_left, tensor.d_right)
    return matrix + matrix.T if tensor.shared_input else matrix


class InteractionOperator:
    """Q(u) - shift I of several directions, for one input."""

    def __init__(
        self,
        tensor: BilinearTensor,
        weights: Float[Tensor, "direction rank"],
        shift: Float[Tensor, " direction"],
    ):
        self.tensor, self.weights, self.shift = tensor, weights, shift
        self.matrices: dict[int, Tensor] = {}
        self._spent = 0.0

    @property
    def build_cost(self) -> float:
        """Multiplications and additions of building one Q."""
        return 2.0 * self.tensor.d_left**2 * self.tensor.rank

    def factored_cost(self, vectors: int) -> float:
        """Of a factored product with so many vectors, at the speed of a large product."""
        return 8.0 * self.tensor.d_left * self.tensor.rank * (vectors + FEW)

    def expect(self, rows: Sequence[int], products: int, block: int) -> None:
        """Builds the matrices where so many products with blocks would cost more than that."""
        missing = [row for row in rows if row not in self.matrices]
        coming = products * self.factored_cost(block * len(missing))
        if missing and max(coming, self._spent) > self.build_cost * len(missing):
            for row in missing:
                self.matrix(row)

    def matrix(self, row: int) -> Float[Tensor, "d d"]:
        """Q(u) - shift I of one direction, built at the first call."""
        if row not in self.matrices:
            matrix = interaction_matrix(self.tensor, self.weights[row])
            if self.shift[row]:
                matrix.diagonal().sub_(self.shift[row])
            self.matrices[row] = matrix
        return self.matrices[row]

    def __call__(
        self, rows: Sequence[int], vectors: Float[Tensor, "row block d"]
    ) -> Float[Tensor, "row block d"]:
        """The product of every direction in `rows` with its own block of vectors."""
        if all(row in self.matrices for row in rows):
            products = [v @ self.matrices[row] for row, v in zip(rows, vectors, strict=True)]
            return torch.stack(products)
        index = torch.as_tensor(rows, device=vectors.device)
        shift = self.shift[index, None, None]
        return self._factored(self.weights[index], vectors) - shift * vectors

    def _factored(self, weights: Tensor, vectors: Tensor) -> Tensor:
        rows, block, d = vectors.shape
        columns = vectors.reshape(rows * block, d).T.contiguous()
        total = torch.zeros_like(columns)
        for start in range(0, self.tensor.rank, BLOCK):
            part = slice(start, start + BLOCK)
            left = self.tensor.left[:, part].to(columns.dtype)
            right = self.tensor.right[:, part].to(columns.dtype)
            scale = (weights[:, part].T / 2)[:, :, None].expand(-1, -1, block).flatten(1)
            through_left, through_right = left.T @ columns, right.T @ columns
            total.addmm_(left, scale * through_right).addmm_(right, scale * through_left)
        self._spent += self.factored_cost(rows * block)
        return total.T.reshape(rows, block, d)
