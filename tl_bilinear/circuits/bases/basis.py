"""The contract of a basis: elements i with symmetric matrices M_i(u), linear in u.

At a site, an MLP's quadratic part is worth end . Q(u) mid to the direction u (`circuits.steps`).
A basis writes Q(u) as sum_i M_i(u) + the rest, which gives element i

    the share      end . M_i(u) mid        of which a reader u_j has end . M_i(u_j) mid
    the direction  M_i(u) mid              that is traced further down: direction . end = share

Equal split (DESIGN 2.4): M_i is symmetric, so both factors of a product have half of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from tl_bilinear.circuits.parts import AbstractParts
from tl_bilinear.decompositions import Mode
from tl_bilinear.quadratic_map import QuadraticMap
from tl_bilinear.tensor import BilinearTensor


@dataclass(frozen=True, eq=False)
class Site:
    """One MLP at one place, and who reads it."""

    layer: int
    place: int
    map: QuadraticMap
    mid: Float[Tensor, " d_model"]
    end: Float[Tensor, " d_model"]
    readers: Float[Tensor, "reader d_model"]
    """Their directions of the MLP's output."""

    @property
    def u(self) -> Float[Tensor, " d_model"]:
        """The accumulated direction."""
        return self.readers.sum(0)

    def back(
        self, u: Float[Tensor, "*u d_model"], x: Float[Tensor, "*x d_model"]
    ) -> Float[Tensor, "*both d_model"]:
        """Q(u) x, for several u or several x. O(rank d) each."""
        tensor = self.map.tensor
        weights = u @ tensor.out
        left = (weights * (x @ tensor.right)) @ tensor.left.T
        return (left + (weights * (x @ tensor.left)) @ tensor.right.T) / 2

    def products(self) -> Float[Tensor, " rank"]:
        """What each hidden unit multiplies, of end and mid."""
        tensor = self.map.tensor
        product = (self.mid @ tensor.left) * (self.end @ tensor.right)
        return (product + (self.end @ tensor.left) * (self.mid @ tensor.right)) / 2

    def shares(self) -> Float[Tensor, " reader"]:
        """The whole quadratic part's worth to each reader."""
        return (self.readers @ self.map.tensor.out) @ self.products()


@dataclass(frozen=True, eq=False)
class Chosen:
    """Some elements at a site."""

    flows: Float[Tensor, "reader element"]
    """Their shares, per reader."""
    directions: Float[Tensor, "element d_model"]
    """Of the normalised stream."""
    constants: Float[Tensor, " element"] | None
    """The part of each share that no input reaches (a dictionary's biases)."""
    labels: tuple[str, ...]
    details: tuple[Mapping[str, Any], ...]
    modes: tuple[Mode, ...] = ()
    """Where elements are modes."""


class Elements(ABC):
    """The elements of a basis at one site."""

    shares: Float[Tensor, " element"]

    @abstractmethod
    def choose(self, index: Int[Tensor, " chosen"]) -> Chosen:
        """What tracing needs of some elements."""


class AbstractBasis(ABC):
    """Finds the elements at sites.

    A final class implements `elements`; `Eigenmodes` is the example.
    """

    name: str
    """As the circuit's settings say it."""
    takes_contrasts: bool = True
    """Whether its M_i are the same in two runs."""

    @abstractmethod
    def elements(self, sites: Sequence[Site]) -> list[Elements]:
        """The elements at sites of one layer."""

    @abstractmethod
    def parts(
        self, tensor: BilinearTensor, layer: int, index: tuple[int, ...], modes: Sequence[Mode]
    ) -> AbstractParts:
        """Some elements of a layer as parts of its output on any prompt.

        Args:
            index: the elements; or, for bases that differ between prompts, `modes`.
        """

    def bound(self, site: Site) -> float:
        """No element's |share| is above it: where that is too small, none is looked for."""
        return float("inf")


def halves(
    site: Site,
    vectors: Float[Tensor, "element d_model"],
    duals: Float[Tensor, "element d_model"],
) -> Float[Tensor, "reader element"]:
    """Each reader's share of M_i = (dual_i v_i^T Q + Q v_i dual_i^T) / 2. O(rank d) per element."""
    tensor = site.map.tensor
    left, right = vectors @ tensor.left, vectors @ tensor.right

    def through(x: Tensor) -> Tensor:
        return (left * (x @ tensor.right) + right * (x @ tensor.left)) / 2

    mixed = (duals @ site.end)[:, None] * through(site.mid)
    mixed = mixed + (duals @ site.mid)[:, None] * through(site.end)
    return (site.readers @ tensor.out) @ mixed.T / 2
