"""What methods without training read at the MLPs' outputs, and how they edit the weights."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.unlearning.answer_rows import AnswerRows, answer_rows
from tl_bilinear.unlearning.methods.method import AbstractMethod, Problem


@dataclass(frozen=True, eq=False)
class Outputs:
    """One layer's MLP output where the answers' tokens are predicted; in float64."""

    forget: Float[Tensor, "forget_site d_model"]
    retain: Float[Tensor, "retain_site d_model"]


def mlp_outputs(
    host: AbstractHost, problem: Problem, layers: Sequence[int]
) -> tuple[dict[int, Outputs], AnswerRows]:
    """The outputs of some layers' MLPs at both sets' sites, and the forget rows."""
    forget, retain = answer_rows(host, problem.forget), answer_rows(host, problem.retain)
    there, others = _at_sites(host, forget, layers), _at_sites(host, retain, layers)
    return {layer: Outputs(there[layer], others[layer]) for layer in layers}, forget


def halves(host: AbstractHost) -> list[tuple[int, ...]]:
    """Four choices of layers: all, the first half, the second half, the last."""
    n, middle = host.n_layers, (host.n_layers + 1) // 2
    choices = [range(n), range(middle), range(middle, n), range(n - 1, n)]
    return list(dict.fromkeys(tuple(choice) for choice in choices if len(choice)))


@dataclass(frozen=True)
class OutputMap(AbstractMethod):
    """An edit that takes something linear out of some layers' MLP outputs."""

    layers: tuple[int, ...] = (0,)

    @classmethod
    def candidates(cls, host: AbstractHost) -> list[AbstractMethod]:
        """Four choices of layers."""
        return [cls(layers=layers) for layers in halves(host)]

    def edit_(self, model: Any, problem: Problem) -> None:
        host = get_host(model)
        outputs, _ = mlp_outputs(host, problem, self.layers)
        generator = torch.Generator().manual_seed(problem.seed)
        for layer, found in outputs.items():
            map_mlp_output_(host, layer, self.taken(found, generator))

    @abstractmethod
    def taken(self, found: Outputs, generator: torch.Generator) -> Float[Tensor, "d_model d_model"]:
        """T: each output y of a layer becomes y - T y."""


def map_mlp_output_(
    host: AbstractHost,
    layer: int,
    taken: Float[Tensor, "d_model d_model"],
    mean: Float[Tensor, " d_model"] | None = None,
) -> None:
    """Make an MLP write y - taken (y - mean) instead of y, in W_out and b_out; mean 0 by default.

    Where the model has no b_out, it gets one as soon as the constant `taken mean` is not zero.
    """
    with torch.no_grad():
        weights = host.mlp_weights(layer)
        out = weights.tensor.out  # a view of W_out
        out.sub_((taken.to(out.device, torch.float64) @ out.double()).to(out))
        bias = weights.out_bias.double()
        change = -taken.to(bias) @ bias
        if mean is not None:
            change = change + taken.to(bias) @ mean.to(bias)
        if change.abs().max() > 0:
            _add_bias_(host, layer, change)


def _add_bias_(host: AbstractHost, layer: int, change: Float[Tensor, " d_model"]) -> None:
    place = host.mlp_weights(layer).tensor.out.untyped_storage().data_ptr()
    for module in host.model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.untyped_storage().data_ptr() != place:
                continue
            key = "bias" if isinstance(module, nn.Linear) else name.replace("W_", "b_")
            bias = getattr(module, key, None)
            if bias is None:
                setattr(module, key, nn.Parameter(change.to(parameter)))
            else:
                bias.add_(change.to(bias))
            return
    raise ValueError(f"layer {layer}'s W_out is no parameter whose bias can be changed")


def _at_sites(
    host: AbstractHost, rows: AnswerRows, layers: Sequence[int]
) -> dict[int, Float[Tensor, "site d_model"]]:
    names = {layer: host.mlp_out_site(layer) for layer in layers}
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for part in torch.arange(rows.n_rows).split(64):
        some = rows.select(part)
        _, values = host.read(some.tokens, list(names.values()))
        for layer, name in names.items():
            site: Int[Tensor, " site"] = some.site_row.to(values[name].device)
            found[layer].append(values[name][site, some.site_pos.to(site)].double().cpu())
    return {layer: torch.cat(parts) for layer, parts in found.items()}
