"""A bilinear classifier of pictures: embed, bilinear layer, head (2410.08417, section 4)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_bilinear.tensor import BilinearTensor
from tl_bilinear.toys.mlp import MLP, gaussian


@dataclass(frozen=True)
class ClassifierConfig:
    """Sizes; checked on creation (ValueError)."""

    n_pixels: int = 64
    n_classes: int = 10
    d_model: int = 64
    d_mlp: int = 64

    def __post_init__(self):
        for name in ("n_pixels", "n_classes", "d_model", "d_mlp"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}: give a number above 0")


class BilinearClassifier(nn.Module):
    """`((x W_E W_gate) * (x W_E W_in)) W_out`: pixels to logits, without biases or norms.

    `mlp.W_out` is the head.

    Args:
        config: the sizes.
        seed: of the weights; torch's own generator is left as it was.
    """

    def __init__(self, config: ClassifierConfig = ClassifierConfig(), *, seed: int = 0):  # noqa: B008 (frozen)
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.W_E = gaussian(config.n_pixels, config.d_model)
            self.mlp = MLP(config.d_model, config.d_mlp, config.n_classes)

    def forward(self, pixels: Float[Tensor, "*batch n_pixels"]) -> Float[Tensor, "*batch class"]:
        return self.mlp(pixels @ self.W_E)

    def tensor(self) -> BilinearTensor:
        """The whole model, pixels to logits, exactly. Its rank is d_mlp."""
        return self.mlp.tensor().change_basis(self.W_E.detach().T)
