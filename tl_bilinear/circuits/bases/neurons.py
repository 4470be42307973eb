"""The MLP's own hidden units: out_r (left_r . x)(right_r . x)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from jaxtyping import Int
from torch import Tensor

from tl_bilinear.circuits.bases.basis import AbstractBasis, Chosen, Elements, Site
from tl_bilinear.circuits.parts import AbstractParts, NeuronParts
from tl_bilinear.decompositions import Mode
from tl_bilinear.tensor import BilinearTensor


@final
@dataclass(frozen=True, eq=False)
class Neurons(AbstractBasis):
    """Every hidden unit is an element. O(rank d) per site."""

    name: str = "neurons"

    def elements(self, sites: Sequence[Site]) -> list[Elements]:
        """All hidden units at each site."""
        return [_Neurons(site) for site in sites]

    def parts(
        self, tensor: BilinearTensor, layer: int, index: tuple[int, ...], modes: Sequence[Mode]
    ) -> AbstractParts:
        """Hidden units."""
        return NeuronParts(tensor, index)


class _Neurons(Elements):
    def __init__(self, site: Site):
        self.site, self.products = site, site.products()
        self.shares = (site.u @ site.map.tensor.out) * self.products

    def choose(self, index: Int[Tensor, " chosen"]) -> Chosen:
        site, tensor = self.site, self.site.map.tensor
        left, right = tensor.left[:, index].T, tensor.right[:, index].T
        ways = (right @ site.mid)[:, None] * left + (left @ site.mid)[:, None] * right
        weights = site.readers @ tensor.out[:, index]
        return Chosen(
            flows=weights * self.products[index],
            directions=weights.sum(0)[:, None] * ways / 2,
            constants=None,
            labels=tuple(f"neuron {i}" for i in index.tolist()),
            details=tuple(
                {"gate": g, "in": r}
                for g, r in zip(
                    (left @ site.end).tolist(), (right @ site.end).tolist(), strict=True
                )
            ),
        )
