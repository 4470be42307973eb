r"""The gate's activation, faded out: $\mathrm{act}(\beta g) / \beta$ with beta going from 1 to 0.

SiLU and GELU are a slope times their argument, $\mathrm{silu}(g) = g\,\sigma(g)$ and
$\mathrm{gelu}(g) = g\,\Phi(g)$, so that $\mathrm{act}(\beta g)/\beta = g \cdot
\mathrm{slope}(\beta g)$: no division, stable at any beta, and at beta = 0 exactly $g/2$. The factor
1/2 is then folded into `gate_proj`, which leaves a bilinear MLP, `down(gate(x) * up(x))`.

Method: Pearce, Dooms, Rigg, Oramas, Sharkey, arXiv:2410.08417, appendix J (TinyLlama; Swish with
beta going linearly to 0 over the first 30 % of fine-tuning).

    annealed = anneal_(model)              # every gated MLP now has an AnnealedGate as its act_fn
    set_beta_(model, linear_schedule(step, n_steps))
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

SLOPE_AT_ZERO = 0.5  # of SiLU and of GELU
_ACTIVATION_KEYS = ("hidden_act", "hidden_activation")


def _sigmoid_slope(gate: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_mlp"]:
    return torch.sigmoid(gate)


def _normal_slope(gate: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_mlp"]:
    return 0.5 * (1 + torch.erf(gate * math.sqrt(0.5)))


def _tanh_slope(gate: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_mlp"]:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))


_SLOPES: dict[str, Callable] = {
    "silu": _sigmoid_slope,
    "swish": _sigmoid_slope,
    "gelu": _normal_slope,
    "gelu_python": _normal_slope,
    "gelu_new": _tanh_slope,
    "gelu_pytorch_tanh": _tanh_slope,
    "gelu_python_tanh": _tanh_slope,
}


class AnnealedGate(nn.Module):
    """The gate `act(beta * g) / beta`: the original at beta = 1, `g / 2` at beta = 0.

    `beta` is a buffer: it follows the model's device and is not trained. It is no part of the
    state dict, which so stays that of the original model.
    """

    def __init__(self, activation: str, beta: float = 1.0):
        """Wrap an activation by its name in transformers.

        Args:
            activation: "silu" ("swish"), "gelu" or a tanh form of GELU.
            beta: the first value.

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

    def set_beta_(self, beta: float) -> None:
        """Set beta in place; raises ValueError unless it is finite and at least 0."""
        if not (math.isfinite(beta) and beta >= 0):
            raise ValueError(f"`beta` is {beta}: give a finite number from 0 upwards.")
        self.beta.fill_(beta)

    def forward(self, gate: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_mlp"]:
        """Return `gate * slope(beta * gate)`, which is `act(beta * gate) / beta`."""
        return gate * _SLOPES[self.activation](self.beta.to(gate.dtype) * gate)

    def extra_repr(self) -> str:
        """Show the activation and beta in the module's printout."""
        return f"activation={self.activation!r}, beta={self.beta.item():.4g}"


def gated_mlps(model: nn.Module) -> list[nn.Module]:
    """Return the modules `down_proj(act_fn(gate_proj(x)) * up_proj(x))`, in layer order.

    Raises:
        ValueError: where there is none, as in models with an ungated MLP, or with `gate_proj` and
            `up_proj` fused in one matrix; and where other modules use the activation as well, as
            experts do: one `hidden_act` rules both.
    """
    acting = [m for m in model.modules() if hasattr(m, "act_fn")]
    parts = ("gate_proj", "up_proj", "down_proj", "act_fn")
    mlps = [m for m in acting if all(isinstance(getattr(m, p, None), nn.Module) for p in parts)]
    others = sorted({type(m).__name__ for m in acting if m not in mlps})
    if others or not mlps:
        found = f"has activations in {', '.join(others)}" if others else "has no gated MLP"
        raise ValueError(
            f"{type(model).__name__} {found}: expected gated MLPs alone, each with "
            f"{', '.join(parts)}, as in Llama, Mistral, Qwen 2 and 3 or Gemma."
        )
    return mlps


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


def anneal_(model: PreTrainedModel, beta: float = 1.0) -> list[AnnealedGate]:
    """Put an `AnnealedGate` in place of every gated MLP's activation; return the gates.

    Raises:
        ValueError: for a model without gated MLPs, one that is bilinear already, or an activation
            that cannot be annealed.
    """
    mlps, activation = gated_mlps(model), gate_activation(model)
    if activation == "linear":
        raise ValueError(
            'the model is bilinear already (hidden_act is "linear"): there is no gate to anneal.'
        )
    gates = [AnnealedGate(activation, beta) for _ in mlps]
    for mlp, gate in zip(mlps, gates, strict=True):
        mlp.act_fn = gate.to(next(mlp.parameters()).device)
    return gates


def set_beta_(model: nn.Module, beta: float) -> None:
    """Set beta in every `AnnealedGate` of the model; raises ValueError where there is none."""
    gates = [module for module in model.modules() if isinstance(module, AnnealedGate)]
    if not gates:
        raise ValueError("the model has no AnnealedGate: call anneal_(model) first.")
    for gate in gates:
        gate.set_beta_(beta)


def linear_schedule(step: int, n_steps: int, fraction: float = 0.3) -> float:
    """Return beta at `step`: from 1 at step 0 linearly to 0 at `fraction * n_steps`, then 0.

    Raises:
        ValueError: unless `n_steps` is positive, `step` at least 0 and `fraction` in (0, 1].
    """
    return 1 - _progress(step, n_steps, fraction)


def cosine_schedule(step: int, n_steps: int, fraction: float = 0.3) -> float:
    """Return beta at `step`: from 1 to 0 along half a cosine over `fraction * n_steps`, then 0.

    Raises:
        ValueError: unless `n_steps` is positive, `step` at least 0 and `fraction` in (0, 1].
    """
    progress = _progress(step, n_steps, fraction)
    return 0.0 if progress == 1 else 0.5 * (1 + math.cos(math.pi * progress))


def _progress(step: int, n_steps: int, fraction: float) -> float:
    if n_steps <= 0 or step < 0 or not 0 < fraction <= 1:
        raise ValueError(
            f"got step {step} of {n_steps} and fraction {fraction}: expected a step from 0, "
            "a positive number of steps and a fraction above 0 and up to 1."
        )
    return min(step / (fraction * n_steps), 1.0)


@torch.no_grad()
def fold_gate_(model: PreTrainedModel) -> None:
    """Fold the annealed gate's factor 1/2 into `gate_proj`: the model becomes bilinear, in place.

    A bias of the gate is halved too. `hidden_act` becomes "linear", transformers' identity, so the
    model saves to a folder of its own class. Halving is exact in floating point: the logits stay.

    Raises:
        ValueError: where some gated MLP has no AnnealedGate, or its beta is not 0 yet.
    """
    mlps = gated_mlps(model)
    for index, mlp in enumerate(mlps):
        gate = mlp.act_fn
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
        for parameter in mlp.get_submodule("gate_proj").parameters():
            parameter.mul_(SLOPE_AT_ZERO)
        mlp.act_fn = ACT2FN["linear"]
    for key in _ACTIVATION_KEYS:
        if isinstance(getattr(model.config, key, None), str):
            setattr(model.config, key, "linear")
