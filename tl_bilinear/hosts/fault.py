"""What is probably wrong with an MLP that fails its self-check, and the way out."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts.gates import GATES, Gate
from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.quadratic_map import QuadraticMap

Function = Callable[[Tensor], Tensor]
Explanation = tuple[Function, str, str]

CONVERT = (
    "Convert it first (tl_bilinear.bilinearize), or load it with check=False to use it as an "
    "ordinary TransformerLens model, or with frozen_gates=True to read it on a prompt"
)
INPUT = (
    "the MLP itself is right, but its input is not what its norm's gain and bias make of "
    "hook_normalized, or a hook edits its output",
    "Remove hooks with model.reset_hooks(); if none is attached, the norm was folded wrongly: "
    "load the model again without weight processing",
)
FOLD = (
    "Finish the annealing (beta = 0) and fold the factor into W_gate with "
    "tl_bilinear.conversion.fold_gate_"
)


def likely_cause(
    host: AbstractHost, layer: int, degree_error: float, weight_error: float, limit: float
) -> tuple[str, str]:
    """A cause and a way out, found by trying what would explain the MLP's output.

    Args:
        degree_error: size of the third difference; above `limit` the MLP is no quadratic.
        weight_error: disagreement between the MLP and its weights on random inputs.
    """
    if weight_error <= limit and degree_error <= limit:
        return INPUT
    found = _explain(host, layer, _explanations(host.mlp_weights(layer).to(torch.float64)), limit)
    if found is not None:
        return found
    if degree_error > limit:
        return (
            "the MLP is not a polynomial of degree two: an activation function that we do not "
            "know, dropout, or a module in between",
            CONVERT,
        )
    return (
        "the MLP is quadratic, but not in these weights: swapped, transposed, scaled or stale "
        "matrices",
        "Load the checkpoint again; if it was edited, edit model.blocks[i].mlp in place",
    )


def likely_gate_fault(
    host: AbstractHost, layer: int, weight_error: float, limit: float
) -> tuple[str, str]:
    """As `likely_cause`, for a gated MLP that its weights and frozen slope do not give."""
    if weight_error <= limit:
        return INPUT
    weights = host.mlp_weights(layer).to(torch.float64)
    built = host.gate(layer)
    assert built is not None, "asked of gated layers only"

    def value(gate: Gate, weights: QuadraticMap) -> Function:
        return lambda x: gate.freeze(weights, x)(x)

    explanations: list[Explanation] = [
        (
            value(gate, weights),
            f"it computes a {gate.name} gate, but was built with {built.name} (a bridge takes SiLU "
            "for every name that it does not know, once weights are processed)",
            "Load the model again and use it without compatibility mode",
        )
        for gate in GATES
        if gate is not built
    ]
    bias = weights.right_bias
    plain = replace(weights, right_bias=torch.zeros_like(bias))
    behind = replace(plain, out_bias=weights.out_bias + bias @ weights.tensor.out.T)
    explanations.append(
        (
            value(built, behind),
            "b_in is added after the product instead of inside it (TransformerLens' own GatedMLP)",
            'Load the model with host="transformer_bridge"',
        )
    )
    return _explain(host, layer, explanations, limit) or (
        f"a {built.name} gate, but not of these weights: swapped, transposed, scaled or stale "
        "matrices, dropout, or a module in between",
        "Load the checkpoint again; if it was edited, edit model.blocks[i].mlp in place",
    )


def _explain(
    host: AbstractHost, layer: int, explanations: Iterable[Explanation], limit: float
) -> tuple[str, str] | None:
    """Cause and way out of the explanation that gives the MLP's output on random inputs."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 64, host.d_model, generator=generator).to(host.device, host.dtype)
    actual = host.run_mlp(layer, x).double()
    best, error = None, float("inf")
    for explanation in explanations:
        value = explanation[0](x.double())
        distance = float((value - actual).abs().max() / actual.abs().max().clamp_min(1e-300))
        if distance < error:
            best, error = explanation, distance
    if best is not None and error <= max(20 * limit, 1e-3):
        return best[1], best[2]
    return None


def _explanations(weights: QuadraticMap) -> Iterator[Explanation]:
    """(function, cause, way out) for each known fault."""

    def gated(gate: Function) -> Function:
        return lambda x: _gated(weights, gate, x)

    for name, act in {"SiLU": F.silu, "GELU": F.gelu, "ReLU": F.relu, "tanh": torch.tanh}.items():
        yield (
            gated(act),
            f"the gate has a {name} activation: this is a gated model, not a bilinear one (or "
            "a bridge fell back to it in compatibility mode)",
            CONVERT + ". If the checkpoint is bilinear, call tl_bilinear.register() before "
            "booting the bridge, or tl_bilinear.adopt_(model) after",
        )
    yield (
        gated(lambda g: F.gelu(g, approximate="tanh")),
        "the gate has a GELU activation (tanh form): a gated model, not a bilinear one",
        CONVERT,
    )
    yield (
        gated(lambda g: g / 2),
        "the annealed gate g/2 was not folded into the weights",
        FOLD,
    )
    for step in range(1, 60):
        beta = 10 ** (-step / 15)
        for name, act in {"SiLU": F.silu, "GELU": F.gelu}.items():
            yield (
                gated(lambda g, act=act, beta=beta: act(beta * g) / beta),
                f"the gate is not quite annealed: {name} with beta about {beta:.2g}, not 0",
                FOLD,
            )
    yield (
        lambda x: _bias_outside(weights, x),
        "b_in is added after the product instead of inside it, or b_gate is lost (as in "
        "TransformerLens' own GatedMLP)",
        "Build the model with act_fn='bilinear' after tl_bilinear.register()",
    )


def _gated(weights: QuadraticMap, gate: Function, x: Float[Tensor, "*batch d_in"]) -> Tensor:
    left = x @ weights.tensor.left + weights.left_bias
    right = x @ weights.tensor.right + weights.right_bias
    return (gate(left) * right) @ weights.tensor.out.T + weights.out_bias


def _bias_outside(weights: QuadraticMap, x: Float[Tensor, "*batch d_in"]) -> Tensor:
    product = (x @ weights.tensor.left) * (x @ weights.tensor.right) + weights.right_bias
    return product @ weights.tensor.out.T + weights.out_bias
