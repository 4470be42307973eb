"""Sparse dictionaries as files, without sae-lens: two layouts behind one function."""

from tl_bilinear.checkpoints.dictionaries.load import bundled_dictionaries as bundled_dictionaries
from tl_bilinear.checkpoints.dictionaries.load import load_dictionary as load_dictionary
from tl_bilinear.checkpoints.dictionaries.save import save_dictionary as save_dictionary
