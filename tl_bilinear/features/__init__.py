"""Features: what an MLP does to the features of sparse dictionaries around it."""

from tl_bilinear.features.correlation import FeatureCorrelations as FeatureCorrelations
from tl_bilinear.features.correlation import correlate_eigenvectors as correlate_eigenvectors
from tl_bilinear.features.pairs import Interactions as Interactions
from tl_bilinear.features.pairs import interactions as interactions
