"""Toy models as plain modules, and their data: digits of 8x8 pixels, arithmetic modulo a prime."""

from tl_bilinear.toys.classifier import BilinearClassifier as BilinearClassifier
from tl_bilinear.toys.classifier import ClassifierConfig as ClassifierConfig
from tl_bilinear.toys.digits import Digits as Digits
from tl_bilinear.toys.mlp import ACTIVATIONS as ACTIVATIONS
from tl_bilinear.toys.mlp import MLP as MLP
from tl_bilinear.toys.mlp import Activation as Activation
from tl_bilinear.toys.modular import ModularTask as ModularTask
from tl_bilinear.toys.modular import Operation as Operation
from tl_bilinear.toys.modular_model import ModularConfig as ModularConfig
from tl_bilinear.toys.modular_model import ModularModel as ModularModel
from tl_bilinear.toys.stored import bundled_toys as bundled_toys
from tl_bilinear.toys.stored import load_classifier as load_classifier
from tl_bilinear.toys.stored import load_modular as load_modular
from tl_bilinear.toys.stored import save_toy as save_toy
