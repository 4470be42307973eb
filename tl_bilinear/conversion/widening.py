"""More neurons for a gated or bilinear MLP, without changing what it computes.

What a gate's activation did, a bilinear MLP can only come near to; more neurons bring it nearer.
New neurons read random directions and write nothing, so the model is the same function until it is
trained on (as a wider network of Chen et al., 1511.05641, section 2.3).
"""

import torch
from torch import nn
from transformers import PreTrainedModel

from tl_bilinear.conversion.gates import gated_mlps


@torch.no_grad()
def widen_(model: PreTrainedModel, d_mlp: int, *, seed: int = 0) -> None:
    """Give every gated MLP `d_mlp` neurons, in place; the model's outputs stay what they are.

    A new neuron's two rows are Gaussian, with the standard deviation of the layer's own ones; its
    column of `down_proj`, and its biases, are zero.

    Raises:
        ValueError: fewer neurons than there are, layers of several widths, or gates that share one
            matrix with the other input (`gate_up_proj`).
    """
    mlps = gated_mlps(model)
    widths = sorted({mlp.d_mlp for mlp in mlps})
    if len(widths) > 1 or d_mlp < widths[-1]:
        raise ValueError(
            f"`d_mlp` is {d_mlp}, but the MLPs have {widths} neurons: give one width that is no "
            "smaller, to a model of one width"
        )
    if any(mlp.fused for mlp in mlps):
        raise ValueError(
            f"{type(model).__name__} keeps the gate in `gate_up_proj`: widening needs matrices "
            "of their own"
        )
    generator = torch.Generator().manual_seed(seed)
    for mlp in mlps:
        for name in ("gate_proj", "up_proj"):
            linear = _linear(mlp.module, name)
            extra = torch.randn(d_mlp - widths[0], linear.in_features, generator=generator)
            extra = extra.to(linear.weight) * linear.weight.std()
            _replace(linear, torch.cat([linear.weight, extra]))
            if linear.bias is not None:
                zeros = linear.bias.new_zeros(d_mlp - widths[0])
                linear.bias = nn.Parameter(torch.cat([linear.bias, zeros]))
        down = _linear(mlp.module, "down_proj")
        nothing = down.weight.new_zeros(down.out_features, d_mlp - widths[0])
        _replace(down, torch.cat([down.weight, nothing], dim=1))
        if hasattr(mlp.module, "intermediate_size"):
            setattr(mlp.module, "intermediate_size", d_mlp)  # noqa: B010 (a plain number)
    model.config.intermediate_size = d_mlp


def _linear(module: nn.Module, name: str) -> nn.Linear:
    linear = module.get_submodule(name)
    assert isinstance(linear, nn.Linear), "transformers' gated MLPs are made of these"
    return linear


def _replace(linear: nn.Linear, weight: torch.Tensor) -> None:
    linear.weight = nn.Parameter(weight.contiguous())
    linear.out_features, linear.in_features = weight.shape
