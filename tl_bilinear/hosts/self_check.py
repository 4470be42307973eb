"""Does the model compute what its weights say? Every MLP output, recomputed.

Three independent questions per layer, all asked in float64 of what the host computed:

1. On a seeded random batch of tokens, do the folded weights (`host.folded_mlp_weights`, norm
   folded by us) reproduce the host's own MLP output?
2. On random inputs of several sizes, do the weights alone (no norm) reproduce the MLP?
3. Is the MLP of degree 2 at all? Then f(2x) - 3 f(x) + 3 f(0) - f(-x) = 0, whatever the
   weights: the third difference over -1, 0, 1, 2.

A reference model, where one is given, adds a fourth: are the log-probabilities equal?

A gated layer of a model with frozen gates is asked the first two with its weights times the
gate's slope, act(g)/g by a formula of ours; it is no polynomial, so the third does not apply.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_bilinear.decompositions.arguments import is_finite
from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.fault import likely_cause, likely_gate_fault
from tl_bilinear.hosts.gates import Gate
from tl_bilinear.hosts.gates import NotBilinearError as NotBilinearError
from tl_bilinear.quadratic_map import QuadraticMap

TOLERANCES = {
    torch.float64: 1e-6,  # stock Hugging Face norms compute in float32
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 6e-2,
}
SCALES = (0.3, 1.0, 4.0)
STEPS = (2, 1, 0, -1)


@dataclass(frozen=True)
class SelfCheck:
    """What was measured. Errors are max |difference| / max |value|, over the batch."""

    host: str
    dtype: str
    tolerance: float
    forward_errors: tuple[float, ...]
    """Per layer: MLP output on tokens against the norm-folded map."""
    weight_errors: tuple[float, ...]
    """Per layer: MLP on random inputs against its weights."""
    degree_errors: tuple[float, ...]
    """Per layer without a frozen gate: third difference, zero for a polynomial of degree two."""
    reference_error: float | None
    """Largest difference of log-probabilities from the reference; None without one."""
    seconds: float
    frozen_gates: tuple[str, ...] = ()
    """The gates whose slopes were frozen, as ("SiLU",); empty for a bilinear model."""

    @property
    def largest_error(self) -> float:
        return max(*self.forward_errors, *self.weight_errors, *self.degree_errors)

    def __str__(self) -> str:
        layers = len(self.forward_errors)
        gates = f" and {', '.join(self.frozen_gates)} slopes" if self.frozen_gates else ""
        text = (
            f"{self.host}, {self.dtype}: {layers} MLPs recomputed from their weights{gates}, "
            f"largest relative error {self.largest_error:.1e} (tolerance {self.tolerance:.0e})"
        )
        if self.reference_error is not None:
            text += f"; log-probabilities within {self.reference_error:.1e} of the reference"
        return text


def self_check(
    model: Any,
    *,
    reference: Callable[[Int[Tensor, "batch pos"]], Float[Tensor, "batch pos d_vocab"]]
    | None = None,
    tolerance: float | None = None,
    seed: int = 0,
) -> SelfCheck:
    """Recompute every MLP output from the weights; raise where they disagree.

    Args:
        model: a HookedTransformer, a TransformerBridge or a host.
        reference: a function from tokens to logits that the model must agree with.
        tolerance: largest relative error; by default 1e-6 in float64, 1e-5 in float32, 1e-2
            in float16, 6e-2 in bfloat16. For the reference it is 10 times that, absolute, in
            nats.
        seed: of the random tokens and inputs; the global generator is not touched.

    Raises:
        NotBilinearError: with the layer, the error, the likely cause and the way out.
        ValueError: a model with frozen gates, one of which is not known.
    """
    start = time.perf_counter()
    host = get_host(model)
    _require_finite(host)
    limit = TOLERANCES[host.dtype] if tolerance is None else tolerance
    generator = torch.Generator().manual_seed(seed)
    pos = min(24, host.n_ctx)
    tokens = torch.randint(host.W_E.shape[0], (2, pos), generator=generator)
    gates = [host.gate(i) if host.frozen_gates else None for i in range(host.n_layers)]
    forward = _forward_errors(host, tokens, gates)
    weight, degree = [], []
    for layer, gate in enumerate(gates):
        x = torch.randn(1, 16, host.d_model, generator=generator).to(host.device, host.dtype)
        runs = _runs(host, layer, x)
        weight.append(_weight_error(host, layer, x, gate, runs))
        degree.append(_degree_error(runs) if gate is None else None)
    for layer, errors in enumerate(zip(degree, weight, forward, strict=True)):
        # `not <=` so that NaN fails
        if not all(error is None or error <= limit for error in errors):
            _raise(host, layer, errors, limit)
    reference_error = None
    if reference is not None:
        reference_error = _reference_error(host, tokens, reference)
        if not reference_error <= 10 * limit:
            raise NotBilinearError(
                f"log-probabilities differ from the reference by {reference_error:.2e} "
                f"(allowed {10 * limit:.0e}) although every MLP agrees with its own weights: "
                "the weights were converted wrongly (swapped or transposed matrices, a lost "
                "bias, a wrong attention scale or norm). Load the checkpoint again with "
                'host="transformer_bridge", which uses transformers\' own modules'
            )
    return SelfCheck(
        host=host.kind,
        dtype=str(host.dtype).removeprefix("torch."),
        tolerance=limit,
        forward_errors=tuple(forward),
        weight_errors=tuple(weight),
        degree_errors=tuple(error for error in degree if error is not None),
        reference_error=reference_error,
        seconds=time.perf_counter() - start,
        frozen_gates=tuple(dict.fromkeys(gate.name for gate in gates if gate is not None)),
    )


def relative_error(value: Float[Tensor, "*shape"], expected: Float[Tensor, "*shape"]) -> float:
    """max |value - expected| / max |expected|, in float64; NaN where either is not finite."""
    value, expected = value.double(), expected.double()
    scale = expected.abs().max()
    difference = (value - expected).abs().max()
    return float(difference / scale.clamp_min(torch.finfo(torch.float64).tiny))


def _require_finite(host: AbstractHost) -> None:
    for layer in range(host.n_layers):
        weights = host.folded_mlp_weights(layer)
        named = {
            "W_gate": weights.tensor.left,
            "W_in": weights.tensor.right,
            "W_out": weights.tensor.out,
            "b_gate": weights.left_bias,
            "b_in": weights.right_bias,
            "b_out": weights.out_bias,
        }
        bad = [name for name, value in named.items() if not is_finite(value)]
        if bad:
            raise NotBilinearError(
                f"layer {layer}: {', '.join(bad)} (norm folded in) holds NaN or infinite "
                "numbers. The checkpoint is damaged or the training diverged: load an earlier "
                "or undamaged one"
            )


def _forward_errors(
    host: AbstractHost, tokens: Int[Tensor, "batch pos"], gates: Sequence[Gate | None]
) -> list[float]:
    layers = range(host.n_layers)
    sites = [site(layer) for layer in layers for site in (host.mlp_input_site, host.mlp_out_site)]
    _, cache = host.read(tokens, sites, attention_mask=torch.ones_like(tokens))
    errors = []
    for layer, gate in enumerate(gates):
        weights = host.folded_mlp_weights(layer).to(torch.float64)
        value = _value(weights, gate, cache[host.mlp_input_site(layer)].double())
        errors.append(relative_error(value, cache[host.mlp_out_site(layer)]))
    return errors


def _runs(
    host: AbstractHost, layer: int, x: Float[Tensor, "1 pos d_model"]
) -> Float[Tensor, "scale step pos d_model"]:
    """The MLP at every size and step, in one pass: a HookedTransformer copies weights in each."""
    inputs = torch.cat([scale * step * x for scale in SCALES for step in STEPS])
    return host.run_mlp(layer, inputs).double().unflatten(0, (len(SCALES), len(STEPS)))


def _weight_error(
    host: AbstractHost,
    layer: int,
    x: Float[Tensor, "1 pos d_model"],
    gate: Gate | None,
    runs: Float[Tensor, "scale step pos d_model"],
) -> float:
    weights = host.mlp_weights(layer).to(torch.float64)
    return max(
        relative_error(values[STEPS.index(1)][None], _value(weights, gate, (scale * x).double()))
        for scale, values in zip(SCALES, runs, strict=True)
    )


def _value(
    weights: QuadraticMap, gate: Gate | None, x: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_model"]:
    return weights(x) if gate is None else gate.freeze(weights, x)(x)


def _degree_error(runs: Float[Tensor, "scale step pos d_model"]) -> float:
    errors = []
    for twice, once, zero, minus in runs:
        third = twice - 3 * once + 3 * zero - minus
        errors.append(float(third.abs().max() / twice.abs().max().clamp_min(1e-300)))
    return max(errors)


def _reference_error(host: AbstractHost, tokens: Tensor, reference: Callable) -> float:
    # Random tokens may begin with the pad token: the mask says that it is none.
    logits, _ = host.read(tokens, (), attention_mask=torch.ones_like(tokens))
    with torch.no_grad():
        expected = reference(tokens.to(host.device))
    difference = logits.double().log_softmax(-1) - expected.double().log_softmax(-1)
    return float(difference.abs().max())


def _raise(
    host: AbstractHost, layer: int, errors: tuple[float | None, float, float], limit: float
) -> None:
    degree, weight, forward = errors
    measured = f"relative errors: on tokens {forward:.1e}, on random inputs {weight:.1e}"
    if degree is None:
        kind = "its weights with their gate frozen"
        cause, way_out = likely_gate_fault(host, layer, weight, limit)
    else:
        kind, measured = (
            "a bilinear MLP of its weights",
            f"{measured}, third difference {degree:.1e}",
        )
        cause, way_out = likely_cause(host, layer, degree, weight, limit)
    raise NotBilinearError(
        f"layer {layer} of this {host.kind} does not compute {kind} ({measured}; tolerance "
        f"{limit:.0e}). Likely cause: {cause}. {way_out}"
    )
