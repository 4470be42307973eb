"""Weights rounded to a few bits: what a rounded model knows may be more than what it shows.

Quantisation brings back what an edit only covered by small changes of the weights (2410.16454).
Here: round to nearest, symmetric, one scale for every output channel (the largest magnitude in it
is the last level), all matrices of the blocks; norms, biases, embedding and unembedding stay.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tl_bilinear.hosts import get_host

# TransformerLens' own parameters, and the axes that an output channel sums over.
_INPUT_AXES: dict[str, tuple[int, ...]] = {
    "W_in": (0,),
    "W_gate": (0,),
    "W_out": (0,),
    "W_Q": (1,),
    "W_K": (1,),
    "W_V": (1,),
    "_W_K": (1,),
    "_W_V": (1,),
    "W_O": (0, 1),
}


def round_weights_(model: Any, bits: int) -> None:
    """Round the matrices of a model's blocks in place.

    Raises:
        ValueError: fewer than 2 bits or more than 16; a matrix of a block whose output axis is
            not known (nothing is rounded then).
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"`bits` must be between 2 and 16, got {bits}")
    host = get_host(model)
    found: dict[int, tuple[Tensor, tuple[int, ...]]] = {}
    for block in host.model.blocks:
        for module in block.modules():
            for name, parameter in module.named_parameters(recurse=False):
                axes = _input_axes(module, name, parameter)
                if axes:
                    found[id(parameter)] = (parameter, axes)
    if not found:
        raise ValueError("this model's blocks hold no matrix to round")
    with torch.no_grad():
        for weight, axes in found.values():
            weight.copy_(rounded(weight, axes, bits))


def rounded(weight: Tensor, axes: tuple[int, ...], bits: int) -> Tensor:
    """Each output channel rounded to the multiples of its largest magnitude / (2^(bits-1) - 1)."""
    levels = 2 ** (bits - 1) - 1
    step = weight.double().abs().amax(axes, keepdim=True) / levels
    step = torch.where(step > 0, step, 1.0)
    return ((weight.double() / step).round() * step).to(weight)


def _input_axes(module: nn.Module, name: str, parameter: Tensor) -> tuple[int, ...]:
    if parameter.ndim < 2 or name.startswith(("b_", "_b_")):
        return ()
    if isinstance(module, nn.Linear):
        return (1,)
    if name not in _INPUT_AXES:
        raise ValueError(
            f"{type(module).__name__}.{name} {list(parameter.shape)} is no matrix that is known "
            "here: rounding is for HookedTransformer's blocks and for blocks of nn.Linear"
        )
    return _INPUT_AXES[name]
