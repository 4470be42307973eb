"""Decompositions: functions of a `BilinearTensor` that return a frozen result."""

from tl_bilinear.decompositions.eigen import Eigendecomposition as Eigendecomposition
from tl_bilinear.decompositions.eigen import eigendecompose as eigendecompose
from tl_bilinear.decompositions.mode import Mode as Mode
