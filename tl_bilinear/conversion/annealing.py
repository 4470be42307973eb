r"""The gate's activation, faded out: $\mathrm{act}(\beta g) / \beta$ with beta going from 1 to 0.

SiLU and GELU are a slope times their argument, $\mathrm{silu}(g) = g\,\sigma(g)$ and
$\mathrm{gelu}(g) = g\,\Phi(g)$, so that $\mathrm{act}(\beta g)/\beta = g \cdot
\mathrm{slope}(\beta g)$: no division, stable at any beta, and at beta = 0 exactly $g/2$. The factor
1/2 is then folded into `gate_proj`, which leaves a bilinear MLP, `down(gate(x) * up(x))`.

Method: Pearce, Dooms, Rigg, Oramas, Sharkey, arXiv:2410.08417, appendix J (TinyLlama; Swish with
beta going linearly to 0 over the first 30 % of fine-tuning).

    annealed = anneal_(model)              # every gated MLP now has an AnnealedGate as its act_fn
    set_beta_(model, beta_at(step, n_steps))
    ...
    set_beta_(model, 0.0)
    fold_gate_(model)                      # hidden_act is now "linear"
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from tl_bilinear.conversion.gates import gate_activation, gated_mlps, name_gate_activation_
from tl_bilinear.hosts.gates import normal_slope, tanh_gelu_slope

SLOPE_AT_ZERO = 0.5  # of SiLU and of GELU
_SLOPES: dict[str, Callable] = {
    "silu": torch.sigmoid,
    "swish": torch.sigmoid,
    "gelu": normal_slope,
    "gelu_python": normal_slope,
    "gelu_new": tanh_gelu_slope,
    "gelu_pytorch_tanh": tanh_gelu_slope,
    "gelu_python_tanh": tanh_gelu_slope,
}


class AnnealedGate(nn.Module):
    """The gate `act(beta * g) / beta`: the original at beta = 1, `g / 2` at beta = 0.

    `beta` is a buffer: it follows the model's device and is not trained. It is no part of the
    state dict, which so stays that of the original model.
    """

    scale: nn.Parameter | None
    """A learned factor for each neuron, folded into its gate at the end; None without."""

    def __init__(self, activation: str, beta: float = 1.0, d_mlp: int | None = None):
        """Wrap an activation by its name in transformers.

        Args:
            activation: "silu" ("swish"), "gelu" or a tanh form of GELU.
            beta: the first value.
            d_mlp: learn a factor for each of so many neurons, from 1; none where it is None.

        Raises:
            ValueError: for an activation that beta does not turn into a multiple of the identity
                (ReLU keeps its kink at every beta), or a beta that is negative or not finite.
        """
        super().__init__()
        if activation not in _SLOPES:
            raise ValueError(
                f"a gate with the activation {activation!r} cannot be annealed: expected one of "
                f"{', '.join(_SLOPES)}, whose act(beta g)/beta goes to g/2 as beta goes to 0."
            )
        self.activation = activation
        self.beta: Tensor
        self.register_buffer("beta", torch.ones(()), persistent=False)
        self.set_beta_(beta)
        self.scale = None if d_mlp is None else nn.Parameter(torch.ones(d_mlp))

    def set_beta_(self, beta: float) -> None:
        """Set beta in place; raises ValueError unless it is finite and at least 0."""
        if not (math.isfinite(beta) and beta >= 0):
            raise ValueError(f"`beta` is {beta}: give a finite number from 0 upwards.")
        self.beta.fill_(beta)
        self._linear = beta == 0

    def forward(self, gate: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_mlp"]:
        """Return `gate * slope(beta * gate)`, which is `act(beta * gate) / beta`, scaled."""
        if self._linear:  # most steps of a conversion: the same numbers, in one operation
            value = SLOPE_AT_ZERO * gate
        else:
            value = gate * _SLOPES[self.activation](self.beta.to(gate.dtype) * gate)
        return value if self.scale is None else self.scale * value

    def extra_repr(self) -> str:
        """Show the activation and beta in the module's printout."""
        return f"activation={self.activation!r}, beta={self.beta.item():.4g}"


def anneal_(
    model: PreTrainedModel, beta: float = 1.0, *, learned_scale: bool = False
) -> list[AnnealedGate]:
    """Put an `AnnealedGate` in place of every gated MLP's activation; return the gates.

    Args:
        learned_scale: give every neuron a factor that is trained with the rest (the authors' code
            does, see 2406.03947) and folded at the end.

    Raises:
        ValueError: for a model without gated MLPs, one that is bilinear already, or an activation
            that cannot be annealed.
    """
    mlps, activation = gated_mlps(model), gate_activation(model)
    if activation == "linear":
        raise ValueError(
            'the model is bilinear already (hidden_act is "linear"): there is no gate to anneal.'
        )
    gates = [AnnealedGate(activation, beta, mlp.d_mlp if learned_scale else None) for mlp in mlps]
    for mlp, gate in zip(mlps, gates, strict=True):
        mlp.set_activation_(gate.to(mlp.gate_rows()[0]))
    return gates


def set_beta_(model: nn.Module, beta: float) -> None:
    """Set beta in every `AnnealedGate` of the model; raises ValueError where there is none."""
    gates = [module for module in model.modules() if isinstance(module, AnnealedGate)]
    if not gates:
        raise ValueError("the model has no AnnealedGate: call anneal_(model) first.")
    for gate in gates:
        gate.set_beta_(beta)


@torch.no_grad()
def fold_gate_(model: PreTrainedModel) -> None:
    """Fold the annealed gate's factor into its weights: the model becomes bilinear, in place.

    The factor is 1/2, times a learned scale where there is one; a bias of the gate has it too.
    `hidden_act` becomes "linear", transformers' identity, so the model saves to a folder of its own
    class. Halving is exact in floating point: without a learned scale the logits stay bit for bit.

    Raises:
        ValueError: where some gated MLP has no AnnealedGate, or its beta is not 0 yet.
    """
    mlps = gated_mlps(model)
    for index, mlp in enumerate(mlps):
        gate = mlp.activation
        if not isinstance(gate, AnnealedGate):
            raise ValueError(
                f"the gated MLP {index} has the activation {type(gate).__name__}, not an "
                "AnnealedGate: call anneal_(model) and bring beta to 0 before folding."
            )
        if gate.beta.item() != 0:
            raise ValueError(
                f"the gated MLP {index} has beta {gate.beta.item():.4g}: only beta 0 is linear. "
                "Call set_beta_(model, 0.0) first, after training there."
            )
    for mlp in mlps:
        scale = getattr(mlp.activation, "scale", None)
        mlp.scale_gate_(SLOPE_AT_ZERO if scale is None else SLOPE_AT_ZERO * scale)
        mlp.set_activation_(ACT2FN["linear"])
    name_gate_activation_(model, "linear")
