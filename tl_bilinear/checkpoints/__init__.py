"""Checkpoints: files -> a transformers model -> a TransformerLens host."""

from tl_bilinear.checkpoints.bundled import bundled_models as bundled_models
from tl_bilinear.checkpoints.load import load as load
from tl_bilinear.checkpoints.save import save_pretrained as save_pretrained
