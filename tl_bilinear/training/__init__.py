"""Training: small bilinear models (in TransformerLens, or plain modules), and dictionaries."""

from tl_bilinear.training.fresh import MLP as MLP
from tl_bilinear.training.fresh import Shape as Shape
from tl_bilinear.training.fresh import fresh_model as fresh_model
from tl_bilinear.training.splicing import Fidelity as Fidelity
from tl_bilinear.training.splicing import measure_fidelity as measure_fidelity
from tl_bilinear.training.tokenizer import train_tokenizer as train_tokenizer
from tl_bilinear.training.topk import TopKConfig as TopKConfig
from tl_bilinear.training.topk import TrainedDictionary as TrainedDictionary
from tl_bilinear.training.topk import train_dictionary as train_dictionary
from tl_bilinear.training.train import TrainingConfig as TrainingConfig
from tl_bilinear.training.train import next_token_loss as next_token_loss
from tl_bilinear.training.train import train as train
