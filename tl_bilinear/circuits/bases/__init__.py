"""What an MLP's share is taken apart into: eigenmodes, or the elements of a shared basis."""

from tl_bilinear.circuits.bases.basis import AbstractBasis as AbstractBasis
from tl_bilinear.circuits.bases.basis import Elements as Elements
from tl_bilinear.circuits.bases.basis import Site as Site
from tl_bilinear.circuits.bases.eigenmodes import Eigenmodes as Eigenmodes
