"""Training of small bilinear models: language models in TransformerLens, and plain modules."""

from tl_bilinear.training.train import TrainingConfig as TrainingConfig
from tl_bilinear.training.train import next_token_loss as next_token_loss
from tl_bilinear.training.train import train as train
