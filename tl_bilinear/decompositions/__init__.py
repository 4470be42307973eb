"""Decompositions: functions of a `BilinearTensor` that return a frozen result."""

from tl_bilinear.decompositions.eigen import Eigendecomposition as Eigendecomposition
from tl_bilinear.decompositions.eigen import eigendecompose as eigendecompose
from tl_bilinear.decompositions.interaction_table import InteractionTable as InteractionTable
from tl_bilinear.decompositions.interaction_table import interaction_table as interaction_table
from tl_bilinear.decompositions.mode import Mode as Mode
from tl_bilinear.decompositions.singular import SingularDecomposition as SingularDecomposition
from tl_bilinear.decompositions.singular import singular_decompose as singular_decompose
from tl_bilinear.decompositions.spectrum import Subspace as Subspace
