"""Which basis is meant, and one basis for some layers and another for the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

from tl_bilinear.circuits.bases.basis import AbstractBasis, Elements, Site
from tl_bilinear.circuits.bases.directions import (
    hosvd_directions,
    random_directions,
    tucker_directions,
    written_directions,
)
from tl_bilinear.circuits.bases.eigenmodes import Eigenmodes
from tl_bilinear.circuits.bases.features import dictionary_features
from tl_bilinear.circuits.bases.neurons import Neurons
from tl_bilinear.circuits.parts import AbstractParts
from tl_bilinear.decompositions import Mode
from tl_bilinear.dictionary import Dictionary
from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.tensor import BilinearTensor

BasisName = Literal["eigenmodes", "neurons", "random", "w_out", "hosvd", "tucker"]
Basis = BasisName | AbstractBasis | Mapping[int, Dictionary]


@final
@dataclass(frozen=True, eq=False)
class PerLayer(AbstractBasis):
    """Bases of their own for some layers."""

    own: Mapping[int, AbstractBasis]
    otherwise: AbstractBasis

    @property
    def name(self) -> str:
        """Each layer's basis."""
        parts = [f"{basis.name} (layer {layer})" for layer, basis in sorted(self.own.items())]
        return ", ".join([*parts, f"{self.otherwise.name} elsewhere"])

    @property
    def takes_contrasts(self) -> bool:
        """Where all of them do."""
        every = [*self.own.values(), self.otherwise]
        return all(basis.takes_contrasts for basis in every)

    def elements(self, sites: Sequence[Site]) -> list[Elements]:
        """Those of the layer's basis."""
        return self.at(sites[0].layer).elements(sites)

    def parts(
        self, tensor: BilinearTensor, layer: int, index: tuple[int, ...], modes: Sequence[Mode]
    ) -> AbstractParts:
        """Those of the layer's basis."""
        return self.at(layer).parts(tensor, layer, index, modes)

    def worth(self, sites: Sequence[Site], threshold: float) -> list[int]:
        """Those of the layer's basis."""
        return self.at(sites[0].layer).worth(sites, threshold)

    def at(self, layer: int) -> AbstractBasis:
        """A layer's basis."""
        return self.own.get(layer, self.otherwise)


def choose_basis(host: AbstractHost, basis: Basis) -> AbstractBasis:
    """The basis of a name, of dictionaries per layer (eigenmodes elsewhere), or itself.

    Raises:
        ValueError: an unknown name, or dictionaries that do not fit.
    """
    if isinstance(basis, AbstractBasis):
        return basis
    if isinstance(basis, Mapping):
        features = dictionary_features(host, basis)
        return PerLayer(dict.fromkeys(basis, features), Eigenmodes())
    if basis == "eigenmodes":
        return Eigenmodes()
    if basis == "neurons":
        return Neurons()
    if basis == "random":
        return random_directions(host)
    if basis == "w_out":
        return written_directions(host)
    if basis == "hosvd":
        return hosvd_directions(host)
    if basis == "tucker":
        return tucker_directions(host)
    raise ValueError(
        f"`basis` must be one of {get_args(BasisName)}, a basis, or dictionaries per layer, got "
        f"{basis!r}"
    )
