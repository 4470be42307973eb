"""Other weights for a live model's MLPs, of another width where that is asked for.

The model is changed in place, on every host: parameters keep their names, configurations say the
new width, and what was remembered of the transformers model for saving says it too.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tl_bilinear.hosts.hooked_source import source_of
from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.quadratic_map import QuadraticMap
from tl_bilinear.tensor import BilinearTensor

PROJECTIONS = ("gate", "in", "out")


@torch.no_grad()
def set_mlps_(host: AbstractHost, maps: Mapping[int, QuadraticMap]) -> None:
    """Put maps of the MLPs' own inputs (as `mlp_weights` gives them) into the model, in its dtype.

    All layers get the width of the widest one, by neurons whose weights are all zero. Parameters
    whose shape stays are written in place; a bias is added only where one is not zero.

    After an error or an interruption the model is as it was, parameter for parameter.

    Raises:
        ValueError: a layer that does not exist, or a bias that the MLP has no place for.
    """
    for layer in maps:
        _ = host.mlp_weights(layer)
    every = {layer: host.mlp_weights(layer) for layer in range(host.n_layers)} | dict(maps)
    width = max(weights.tensor.rank for weights in every.values())
    journal = _Journal()
    try:
        for layer, weights in every.items():
            if layer in maps or weights.tensor.rank != width:
                wide = padded(weights.to(host.device, host.dtype, copy=True), width)
                _put_(host, layer, wide, journal)
        _note_width_(host, width, journal)
    except BaseException:
        journal.take_back()
        raise


class _Journal:
    """What each step of a change replaced, noted before it is taken."""

    def __init__(self):
        self._before: list[Callable[[], object]] = []

    def set(self, owner: Any, name: str, value: Any, setter: Callable = setattr) -> None:
        """An attribute."""
        before = getattr(owner, name)
        self._before.append(lambda: setter(owner, name, before))
        setter(owner, name, value)

    def copy(self, tensor: Tensor, value: Tensor) -> None:
        """A tensor's numbers, in place."""
        before = tensor.detach().clone()
        self._before.append(lambda: tensor.copy_(before))
        tensor.copy_(value)

    def weight(self, module: nn.Module, name: str, value: Tensor) -> None:
        """A parameter: in place where its shape stays."""
        present = getattr(module, name)
        if present is not None and present.shape == value.shape:
            self.copy(present, value)
            return
        trains = present is None or present.requires_grad
        self.set(module, name, nn.Parameter(value.contiguous(), requires_grad=trains))

    def take_back(self) -> None:
        """All of it, the last step first."""
        while self._before:
            self._before.pop()()


def padded(weights: QuadraticMap, rank: int) -> QuadraticMap:
    """The same map with zero neurons behind its own."""
    tensor = weights.tensor
    missing = rank - tensor.rank
    if missing == 0:
        return weights

    def wider(factor: Tensor) -> Tensor:
        return nn.functional.pad(factor, (0, missing))

    return QuadraticMap(
        tensor=BilinearTensor(wider(tensor.left), wider(tensor.right), wider(tensor.out)),
        left_bias=wider(weights.left_bias),
        right_bias=wider(weights.right_bias),
        out_bias=weights.out_bias,
    )


def narrowed(weights: QuadraticMap, rank: int) -> QuadraticMap:
    """The first `rank` neurons, copied."""
    tensor = weights.tensor
    return QuadraticMap(
        tensor=BilinearTensor(*(f[:, :rank] for f in (tensor.left, tensor.right, tensor.out))),
        left_bias=weights.left_bias[:rank],
        right_bias=weights.right_bias[:rank],
        out_bias=weights.out_bias,
    ).to(tensor.out.dtype, copy=True)


def _put_(host: AbstractHost, layer: int, weights: QuadraticMap, journal: _Journal) -> None:
    mlp = host.model.blocks[layer].mlp
    tensor = weights.tensor
    named = {
        "gate": (tensor.left, weights.left_bias),
        "in": (tensor.right, weights.right_bias),
        "out": (tensor.out.mT, weights.out_bias),
    }
    if not hasattr(mlp, "gate"):  # a HookedTransformer's component holds its parameters itself
        for name, (weight, bias) in named.items():
            journal.weight(mlp, f"W_{name}", weight)
            if hasattr(mlp, f"b_{name}"):
                journal.weight(mlp, f"b_{name}", bias)
            elif bias.any():
                raise ValueError(f"layer {layer}: {type(mlp).__name__} has no b_{name}")
        journal.set(mlp, "d_mlp", tensor.rank)
        return
    linears = {name: getattr(mlp, name).original_component for name in PROJECTIONS}
    for name, (weight, bias) in named.items():
        linear = linears[name]
        journal.weight(linear, "weight", weight.mT)
        for side, size in zip(("out_features", "in_features"), weight.mT.shape, strict=True):
            journal.set(linear, side, size)
        if linear.bias is not None or bool(bias.any()):
            journal.weight(linear, "bias", bias)
        _forget_processed_(mlp, name, linear, journal)
    _join_(mlp, linears, journal)
    for name, linear in linears.items():
        if f"b_{name}" in vars(mlp):  # found once, as the bridge was built: None for no bias
            journal.set(mlp, f"b_{name}", linear.bias, object.__setattr__)
    if hasattr(mlp.original_component, "intermediate_size"):
        journal.set(mlp.original_component, "intermediate_size", tensor.rank)


def _forget_processed_(mlp: Any, name: str, linear: nn.Linear, journal: _Journal) -> None:
    """3.9's bridge keeps processed weights a second time; our forward pass reads the linears."""
    if hasattr(mlp, f"_processed_W_{name}"):
        journal.set(mlp, f"_processed_W_{name}", linear.weight)
        journal.set(mlp, f"_processed_b_{name}", linear.bias)


def _join_(mlp: Any, linears: Mapping[str, nn.Linear], journal: _Journal) -> None:
    """One fused matrix of gate and input (Phi3, GLM), the two being views of it, as it was."""
    name = getattr(mlp, "fused_attr", None)
    if name is None:
        return
    fused, gate, other = getattr(mlp.original_component, name), linears["gate"], linears["in"]
    for kind in ("weight", "bias"):
        parts = [getattr(linear, kind) for linear in (gate, other)]
        if any(part is None for part in parts):
            continue
        trains = parts[0].requires_grad
        whole = nn.Parameter(torch.cat(parts), requires_grad=trains)
        journal.set(fused, kind, whole)
        for linear, view in zip((gate, other), whole.detach().chunk(2), strict=True):
            journal.set(linear, kind, nn.Parameter(view, requires_grad=trains))
    journal.set(fused, "out_features", len(fused.weight))


def _note_width_(host: AbstractHost, width: int, journal: _Journal) -> None:
    model = host.model
    source = source_of(model)
    original = getattr(model, "original_model", None)
    configs: list[Any] = [model.cfg]
    configs += [] if source is None else [source.config]
    configs += [getattr(original, name, None) for name in ("config", "cfg")]
    for config in configs:
        for name in ("d_mlp", "intermediate_size"):
            if hasattr(config, name):
                journal.set(config, name, width)
