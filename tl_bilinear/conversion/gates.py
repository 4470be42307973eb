"""The gated MLPs of a transformers model: where the gate is, and what acts on it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

_ACTIVATIONS = ("act_fn", "activation_fn")
_ACTIVATION_KEYS = ("hidden_act", "hidden_activation")


@dataclass(frozen=True, eq=False)
class GatedMLP:
    """One module `down_proj(activation(gate(x)) * up(x))`, the gate its own matrix or the first
    half of the rows of `gate_up_proj` (Phi3, GLM)."""

    module: nn.Module
    activation_name: str
    """The attribute that holds the activation."""
    fused: bool

    @property
    def activation(self) -> nn.Module:
        return self.module.get_submodule(self.activation_name)

    def set_activation_(self, activation: nn.Module) -> None:
        setattr(self.module, self.activation_name, activation)

    @property
    def d_mlp(self) -> int:
        return self.gate_rows()[0].shape[0]

    def gate_rows(self) -> list[Tensor]:
        """The gate's weight [d_mlp, d_model] and bias [d_mlp], if it has one: live views."""
        if not self.fused:
            return list(self.module.get_submodule("gate_proj").parameters())
        parameters = list(self.module.get_submodule("gate_up_proj").parameters())
        return [parameter[: len(parameter) // 2] for parameter in parameters]

    @torch.no_grad()
    def scale_gate_(self, factor: Float[Tensor, " d_mlp"] | float) -> None:
        """Multiply each of the gate's rows, its bias included, in place."""
        for rows in self.gate_rows():
            scale = torch.as_tensor(factor, dtype=rows.dtype, device=rows.device)
            rows.mul_(scale.reshape(-1, *[1] * (rows.ndim - 1)))


def gated_mlps(model: nn.Module) -> list[GatedMLP]:
    """Return the gated MLPs in layer order.

    Raises:
        ValueError: where there is none, as in models with an ungated MLP; where other modules use
            the activation as well, as experts do: one `hidden_act` rules both; and where two gates
            share one matrix, or a gate shares it with its other input.
    """
    acting = [(m, name) for m in model.modules() for name in _ACTIVATIONS if hasattr(m, name)]
    found = [(_gated_mlp(m, name), m) for m, name in acting]
    mlps = [mlp for mlp, _ in found if mlp is not None]
    others = sorted({type(m).__name__ for mlp, m in found if mlp is None})
    if others or not mlps:
        what = f"has activations in {', '.join(others)}" if others else "has no gated MLP"
        raise ValueError(
            f"{type(model).__name__} {what}: expected gated MLPs alone, each with gate_proj, "
            "up_proj (or gate_up_proj), down_proj and act_fn, as in Llama, Mistral, Qwen 2 and 3, "
            "Gemma or Phi3."
        )
    _require_untied(model, mlps)
    return mlps


def _gated_mlp(module: nn.Module, activation_name: str) -> GatedMLP | None:
    def has(*parts: str) -> bool:
        return all(isinstance(getattr(module, part, None), nn.Module) for part in parts)

    if not has("down_proj", activation_name):
        return None
    if has("gate_proj", "up_proj"):
        return GatedMLP(module, activation_name, fused=False)
    return GatedMLP(module, activation_name, fused=True) if has("gate_up_proj") else None


def _require_untied(model: nn.Module, mlps: list[GatedMLP]) -> None:
    seen: dict[int, int] = {}
    for index, mlp in enumerate(mlps):
        weights = [mlp.gate_rows()[0]]
        if not mlp.fused:
            weights.append(mlp.module.get_submodule("up_proj").get_parameter("weight"))
        for weight in weights:
            other = seen.setdefault(weight.data_ptr(), index)
            if other != index or len({w.data_ptr() for w in weights}) < len(weights):
                raise ValueError(
                    f"the gated MLPs {other} and {index} of {type(model).__name__} share a weight "
                    "matrix with a gate: folding the gate's factor would change both. Untie them "
                    "first (give each its own copy)."
                )


def gate_activation(model: PreTrainedModel) -> str:
    """Return the name of the gate's activation from the model's config.

    Raises:
        ValueError: where the config names none.
    """
    for key in reversed(_ACTIVATION_KEYS):  # Gemma's config holds both; the second one acts
        name = getattr(model.config, key, None)
        if isinstance(name, str):
            return name
    raise ValueError(
        f"the config of {type(model).__name__} names no gate activation: expected "
        f"{' or '.join(_ACTIVATION_KEYS)}."
    )


def name_gate_activation_(model: PreTrainedModel, name: str) -> None:
    """Write the activation's name under every key of the config that names one."""
    for key in _ACTIVATION_KEYS:
        if isinstance(getattr(model.config, key, None), str):
            setattr(model.config, key, name)
