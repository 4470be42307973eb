"""The gates that can be frozen: activations that are an exactly known slope times their argument.

Which one a model has is told by calling the activation that it was built with, never by a
configuration key: Gemma 2 ignores hidden_act, and TransformerLens names some gates otherwise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.frozen_map import FrozenMap
from tl_bilinear.quadratic_map import QuadraticMap

FROZEN = "_tl_bilinear_frozen_gates"
"""The mark that `freeze_gates_` sets on a TransformerLens model."""


class NotBilinearError(ValueError):
    """A model does not compute what its weights would compute as a bilinear MLP."""


@dataclass(frozen=True)
class Gate:
    """An activation act(g) = g s(g)."""

    name: str
    activation: str
    """What transformers calls it in a configuration."""
    slope: Callable[[Tensor], Tensor]
    """s(g) = act(g)/g, with its limit at g = 0."""

    def freeze(self, weights: QuadraticMap, x: Float[Tensor, "*batch d_in"]) -> FrozenMap:
        """The gated layer of these weights on given inputs, slopes taken there."""
        return FrozenMap(weights, self.slope(x @ weights.tensor.left + weights.left_bias))


def normal_slope(gate: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_mlp"]:
    """Phi(g), GELU's; 1/2 at 0."""
    return 0.5 * (1 + torch.erf(gate * math.sqrt(0.5)))


def tanh_gelu_slope(gate: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_mlp"]:
    """That of GELU's tanh form; 1/2 at 0."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))


def _step(gate: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_mlp"]:
    return (gate > 0).to(gate)  # at 0 any slope gives 0


def _quick_slope(gate: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_mlp"]:
    return torch.sigmoid(1.702 * gate)


def _tanh_slope(gate: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_mlp"]:
    safe = torch.where(gate == 0, torch.ones_like(gate), gate)
    return torch.where(gate == 0, torch.ones_like(gate), torch.tanh(safe) / safe)


GATES = (
    Gate("SiLU", "silu", torch.sigmoid),
    Gate("GELU", "gelu", normal_slope),
    Gate("GELU (tanh form)", "gelu_pytorch_tanh", tanh_gelu_slope),
    Gate("ReLU", "relu", _step),
    Gate("ReLU squared", "relu2", torch.relu),
    Gate("quick GELU", "quick_gelu", _quick_slope),
    Gate("tanh", "tanh", _tanh_slope),
)


def is_identity(activation: Callable[..., Tensor] | None) -> bool:
    """Whether an activation returns what it is given, tried on numbers of all sizes."""
    if activation is None:
        return False
    probe = torch.cat([-(10.0 ** torch.arange(-3, 4)), torch.zeros(1), 10.0 ** torch.arange(-3, 4)])
    with torch.no_grad():
        value = activation(probe.clone())
    return torch.is_tensor(value) and torch.equal(value, probe)


def known_gate(activation: Callable[..., Tensor]) -> Gate | None:
    """The gate that an activation computes, tried on numbers from -30 to 30; None if unknown."""
    probe = torch.linspace(-30, 30, 601, dtype=torch.float64)
    with torch.no_grad():
        value = activation(probe.clone())
    if not torch.is_tensor(value) or value.shape != probe.shape:
        return None
    for gate in GATES:
        # GELU and its tanh form differ by 5e-4; transformers' variants of one form by 1e-9.
        if torch.allclose(value.double(), probe * gate.slope(probe), rtol=1e-6, atol=1e-6):
            return gate
    return None


def activation_name(activation: Callable[..., Tensor] | None) -> str:
    """A gate's usual name, or that of the class or function where it is not a known one."""
    if activation is None:
        return "no activation"
    gate = known_gate(activation)
    if gate is not None:
        return gate.name
    return getattr(activation, "__name__", type(activation).__name__)


def require_gate(layer: int, activation: Callable[..., Tensor] | None) -> Gate:
    """The known gate of a gated layer, or a ValueError that names those that are known."""
    gate = None if activation is None else known_gate(activation)
    if gate is None:
        raise ValueError(
            f"layer {layer}: the gate's activation ({activation_name(activation)}) is none whose "
            f"slope is known ({', '.join(gate.name for gate in GATES)}), so it cannot be frozen: "
            "load the model without frozen_gates and with check=False to use it as an ordinary "
            "TransformerLens model"
        )
    return gate


def gated_error(layer: int, activation: Callable[..., Tensor] | None) -> NotBilinearError:
    """What is raised where one map of a gated layer is asked for."""
    return NotBilinearError(
        f"layer {layer} has a {activation_name(activation)} gate, so its weights alone are not "
        "what it computes: load the model with frozen_gates=True to read it on a prompt "
        "(attribute_modes, host.frozen_mlp_map), or convert it (tl_bilinear.bilinearize)"
    )
