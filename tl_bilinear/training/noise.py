"""Latent noise: Gaussian, in units of each layer input's own standard deviation.

2406.03947 (its plot code) adds `0.33 * x.std() * randn` to latents while training, which makes
eigenvectors easier to read there; 2410.08417 appendix B finds no measurable effect on MNIST.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def mlps(model: nn.Module) -> list[nn.Module]:
    """Every module that is called `mlp`: the MLPs of both hosts and of transformers models.

    Raises:
        ValueError: there is none.
    """
    found = [module for name, module in model.named_modules() if name.split(".")[-1] == "mlp"]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no module called `mlp` to add latent noise before: name "
            "the modules by `noise_at`"
        )
    return found


@contextmanager
def latent_noise(modules: Sequence[nn.Module], scale: float) -> Iterator[None]:
    """Within, each module's first input has noise of `scale` times its standard deviation.

    The deviation is over the whole batch, and no gradient flows through it.

    Raises:
        ValueError: on leaving, if a module was not run: nothing was added there.
    """
    silent = set(map(id, modules))

    def add(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        silent.discard(id(module))
        x, *rest = args
        return (x + scale * x.detach().std() * torch.randn_like(x), *rest)

    handles = [module.register_forward_pre_hook(add) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if silent:
        raise ValueError(
            f"{len(silent)} of {len(modules)} modules for the latent noise were never run: give "
            "`noise_at` the modules that the model calls"
        )
