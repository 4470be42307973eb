"""Decompositions: functions of a `BilinearTensor` that return a frozen result."""

from tl_bilinear.decompositions.cp import CPDecomposition as CPDecomposition
from tl_bilinear.decompositions.cp import cp_decompose as cp_decompose
from tl_bilinear.decompositions.cp import pair_squares as pair_squares
from tl_bilinear.decompositions.difference import DifferenceModes as DifferenceModes
from tl_bilinear.decompositions.difference import difference_modes as difference_modes
from tl_bilinear.decompositions.eigen import Eigendecomposition as Eigendecomposition
from tl_bilinear.decompositions.eigen import eigendecompose as eigendecompose
from tl_bilinear.decompositions.higher_order_svd import HOSVD as HOSVD
from tl_bilinear.decompositions.higher_order_svd import hosvd as hosvd
from tl_bilinear.decompositions.interaction_table import InteractionTable as InteractionTable
from tl_bilinear.decompositions.interaction_table import interaction_table as interaction_table
from tl_bilinear.decompositions.mode import InputMode as InputMode
from tl_bilinear.decompositions.mode import Mode as Mode
from tl_bilinear.decompositions.mode import OutputMode as OutputMode
from tl_bilinear.decompositions.reconstruction import Reconstruction as Reconstruction
from tl_bilinear.decompositions.reconstruction import reconstruct as reconstruct
from tl_bilinear.decompositions.similarity import SimilarityMatrix as SimilarityMatrix
from tl_bilinear.decompositions.similarity import TensorSimilarity as TensorSimilarity
from tl_bilinear.decompositions.similarity import similarity_matrix as similarity_matrix
from tl_bilinear.decompositions.similarity import tensor_similarity as tensor_similarity
from tl_bilinear.decompositions.singular import SingularDecomposition as SingularDecomposition
from tl_bilinear.decompositions.singular import singular_decompose as singular_decompose
from tl_bilinear.decompositions.spectrum import Subspace as Subspace
from tl_bilinear.decompositions.subspace import SharedSubspace as SharedSubspace
from tl_bilinear.decompositions.subspace import shared_subspace as shared_subspace
