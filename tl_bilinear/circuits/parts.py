"""What nodes of circuits do on any prompt: parts of an MLP's output that can be taken out.

A node was found on one prompt; as a part it is a function y_i(x) of what its MLP reads, at every
position. Of one layer, with sum_i y_i the whole output where a shared basis spans it:

    eigenmodes   U^T (U U^T)^+ lambda_i (v_i . x)^2 for directions U (DESIGN 2.8)
    neurons      out_i (left_i . x)(right_i . x)
    input        B(v_i, x)(d_i . x), symmetrised
    output       w_i (d_i . B(x))
    features     z_i B(v_i, x) of an input dictionary, z_i d_i of an output one
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.decompositions import Mode
from tl_bilinear.decompositions.mode import stacked
from tl_bilinear.decompositions.parallel import group_rows
from tl_bilinear.dictionary import Dictionary
from tl_bilinear.tensor import BilinearTensor

PARALLEL = 0.95
"""Directions of at least this |cosine| are taken for one: told apart, they would be written by
large vectors that nearly cancel."""


class AbstractParts(ABC):
    """Some parts of one layer's output."""

    @abstractmethod
    def outputs(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token part d_model"]:
        """y_i(x) of every part."""

    @abstractmethod
    def drawn(self, generator: torch.Generator) -> "AbstractParts":
        """As many parts of the same kind that are not these: a control before it is matched."""

    def rms(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, " part"]:
        """Root mean square of |y_i(x)| over the tokens."""
        return self.outputs(x).square().sum(-1).mean(0).sqrt()


@final
@dataclass(frozen=True, eq=False)
class ModeParts(AbstractParts):
    """Eigenmodes of one layer, each along its own direction."""

    eigenvalues: Float[Tensor, " part"]
    eigenvectors: Float[Tensor, "part d_model"]
    writes: Float[Tensor, "part d_model"]
    """What one unit of lambda (v . x)^2 adds to the output."""

    @classmethod
    def of(cls, modes: Sequence[Mode]) -> "ModeParts":
        """The parts of modes of one layer; a direction nearly parallel to an earlier one is it."""
        directions = stacked(modes, "direction")
        norms = directions.norm(dim=1, keepdim=True)
        units, group, signs = group_rows(directions / norms, PARALLEL)
        inverse = torch.linalg.pinv(units).mT
        return cls(
            eigenvalues=torch.tensor([mode.eigenvalue for mode in modes]).to(units),
            eigenvectors=stacked(modes, "eigenvector"),
            writes=signs[:, None] * inverse[group] / norms,
        )

    def outputs(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token part d_model"]:
        amounts = self.eigenvalues * (x @ self.eigenvectors.T) ** 2
        return amounts[..., None] * self.writes

    def drawn(self, generator: torch.Generator) -> "ModeParts":
        """The same directions and signs with eigenvectors drawn from the sphere."""
        vectors = torch.randn(self.eigenvectors.shape, generator=generator, dtype=torch.float64)
        vectors = (vectors / vectors.norm(dim=1, keepdim=True)).to(self.eigenvectors)
        return ModeParts(self.eigenvalues, vectors, self.writes)


@dataclass(frozen=True, eq=False)
class ChosenParts(AbstractParts):
    """Some of the elements that one layer's output is taken apart into."""

    tensor: BilinearTensor
    index: tuple[int, ...]
    """Which elements."""

    @property
    @abstractmethod
    def n_elements(self) -> int:
        """How many there are to choose from."""

    def drawn(self, generator: torch.Generator) -> "ChosenParts":
        """Other elements of the same."""
        return replace(self, index=others(self.index, self.n_elements, generator))


@final
@dataclass(frozen=True, eq=False)
class NeuronParts(ChosenParts):
    """Hidden units of one layer."""

    @property
    def n_elements(self) -> int:
        return self.tensor.rank

    def outputs(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token part d_model"]:
        chosen = list(self.index)
        tensor = self.tensor
        amounts = (x @ tensor.left[:, chosen]) * (x @ tensor.right[:, chosen])
        return amounts[..., None] * tensor.out[:, chosen].T


@dataclass(frozen=True, eq=False)
class DirectionParts(ChosenParts):
    """Directions of a basis of what one layer reads, or of what it writes."""

    rows: Float[Tensor, "element d_model"]
    duals: Float[Tensor, "element d_model"]

    @property
    def n_elements(self) -> int:
        return len(self.rows)


@final
@dataclass(frozen=True, eq=False)
class InputParts(DirectionParts):
    """Input directions of one layer."""

    def outputs(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token part d_model"]:
        chosen = list(self.index)
        return (x @ self.duals[chosen].T)[..., None] * through(self.tensor, self.rows[chosen], x)


@final
@dataclass(frozen=True, eq=False)
class OutputParts(DirectionParts):
    """Output directions of one layer."""

    def outputs(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token part d_model"]:
        chosen = list(self.index)
        return (self.tensor(x) @ self.duals[chosen].T)[..., None] * self.rows[chosen]


@final
@dataclass(frozen=True, eq=False)
class FeatureParts(ChosenParts):
    """Features of a dictionary of one layer's input or output."""

    dictionary: Dictionary
    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    reads: bool

    @property
    def n_elements(self) -> int:
        return self.dictionary.n_features

    def outputs(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token part d_model"]:
        chosen = list(self.index)
        rows = self.dictionary.decoder[chosen]
        if not self.reads:
            z = self.dictionary.encode(self.tensor(x))[:, chosen]
            return z[..., None] * rows
        z = self.dictionary.encode(self.gain * x + self.bias)[:, chosen]
        return z[..., None] * through(self.tensor, rows / self.gain, x)


def through(
    tensor: BilinearTensor, rows: Float[Tensor, "part d"], x: Float[Tensor, "token d"]
) -> Float[Tensor, "token part d_out"]:
    """B(v_i, x), symmetrised."""
    mixed = (rows @ tensor.left) * (x @ tensor.right)[:, None]
    mixed = mixed + (rows @ tensor.right) * (x @ tensor.left)[:, None]
    return mixed @ tensor.out.T / 2


def others(index: Sequence[int], n: int, generator: torch.Generator) -> tuple[int, ...]:
    """As many other elements as there are; again from all where too few are left."""
    left = [i for i in range(n) if i not in set(index)]
    pool = left if len(left) >= len(index) else list(range(n))
    order = torch.randperm(len(pool), generator=generator).tolist()
    return tuple(pool[i] for i in order[: len(index)])
