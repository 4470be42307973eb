"""What an MLP's share is taken apart into: eigenmodes, or the elements of a shared basis."""

from tl_bilinear.circuits.bases.basis import AbstractBasis as AbstractBasis
from tl_bilinear.circuits.bases.basis import Elements as Elements
from tl_bilinear.circuits.bases.basis import Site as Site
from tl_bilinear.circuits.bases.choose import Basis as Basis
from tl_bilinear.circuits.bases.choose import PerLayer as PerLayer
from tl_bilinear.circuits.bases.choose import choose_basis as choose_basis
from tl_bilinear.circuits.bases.directions import InputDirections as InputDirections
from tl_bilinear.circuits.bases.directions import OutputDirections as OutputDirections
from tl_bilinear.circuits.bases.eigenmodes import Eigenmodes as Eigenmodes
from tl_bilinear.circuits.bases.features import dictionary_features as dictionary_features
from tl_bilinear.circuits.bases.neurons import Neurons as Neurons
