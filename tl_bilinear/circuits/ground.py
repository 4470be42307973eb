"""What a trace stands on: one prompt that is frozen, or two whose difference is traced."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from tl_bilinear.circuits.steps import LayerStep, NormStep, ends, layer_step, norm_step
from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.hosts.prompts import token_names
from tl_bilinear.hosts.replay import Replay
from tl_bilinear.hosts.target import readout_bias

CACHED_NUMBERS = 2**27
"""MLP weights, in float64, that are kept between sweeps instead of being converted again."""


@dataclass(frozen=True, eq=False)
class Ground:
    """The readouts at the top, the layers' steps, and the tokens at the bottom."""

    host: AbstractHost
    runs: tuple[Replay, ...]
    """One, or two of one length: the first minus the second."""
    tokens: tuple[tuple[str, int], ...]
    """Label and id, per place."""
    target_label: str
    final: NormStep | None
    """None where the readouts are directions of the stream."""
    readouts: tuple[tuple[int, Float[Tensor, " d_model"], float], ...]
    """(place, direction behind the final norm, what its biases add)."""
    token_part: Float[Tensor, "place d_model"]
    position_part: Float[Tensor, "place d_model"] | None
    """None where positions are not embedded, and in a contrast, where they cancel."""
    expand_patterns: bool = False
    steps: dict[int, LayerStep] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        return len(self.runs[0].layers)

    @property
    def target(self) -> float:
        """The model's own value, or difference."""
        values = [run.target for run in self.runs]
        return values[0] if len(values) == 1 else values[0] - values[1]

    @property
    def scale(self) -> float:
        """No part of the stream is worth more than this, unless parts cancel."""
        total = 0.0
        for place, direction, _ in self.readouts:
            if self.final is not None:
                direction = self.final.back(direction, place)
            total += float(direction.norm() * max(run.end[place].norm() for run in self.runs))
        return total

    def step(self, layer: int) -> LayerStep:
        """A layer's step, in float64; kept where the model is small."""
        if layer in self.steps:
            return self.steps[layer]
        step = layer_step(self.host, self.runs, layer, self.expand_patterns)
        tensor = step.maps.weights.tensor
        if self.n_layers * tensor.rank * (2 * tensor.d_in + tensor.d_out) <= CACHED_NUMBERS:
            self.steps[layer] = step
        return step


def make_ground(
    host: AbstractHost,
    runs: Sequence[Replay],
    layer: int | None,
    expand_patterns: bool = False,
) -> Ground:
    """The ground of one run or of two.

    Args:
        layer: where readouts are directions of the stream behind it, and not of the final norm's.
    """
    places, frozen = runs[0].places, len(runs) == 1
    final = None
    if layer is None:
        final = norm_step(host.final_norm(), [run.end for run in runs])
    embeddings = [run.embedding for run in runs]
    token_part, position_part = ends(embeddings), None
    if frozen:
        tokens = host.W_E.detach()[places.tokens.to(host.device)].to(token_part)
        position_part = token_part - tokens
        # Rotary models have no position embedding; what is left is the host's rounding.
        if position_part.abs().max() > 1e-5 * tokens.abs().max():
            token_part = tokens
        else:
            position_part = None
    readouts = []
    for readout, place in zip(places.readouts, places.read_at, strict=True):
        constant = 0.0
        if frozen and layer is None:
            constant = float(readout_bias(host, readout))
        readouts.append((place, readout.direction.to(token_part), constant))
    return Ground(
        host=host,
        runs=tuple(runs),
        tokens=_labels(host, [run.places.tokens for run in runs]),
        target_label=_target_label(places.readouts),
        final=final,
        readouts=tuple(readouts),
        token_part=token_part,
        position_part=position_part,
        expand_patterns=expand_patterns,
    )


def _target_label(readouts: Sequence) -> str:
    first, *others = (readout.label for readout in readouts)
    return " ".join([first, *(each if each.startswith("−") else f"+ {each}" for each in others)])


def _labels(host: AbstractHost, tokens: Sequence[Tensor]) -> tuple[tuple[str, int], ...]:
    names = [token_names(host, row) for row in tokens]
    first = tokens[0].tolist()
    if len(names) == 1:
        return tuple(zip(names[0], first, strict=True))
    pairs = zip(*names, strict=True)
    labels = [a if a == b else f"{b} → {a}" for a, b in pairs]
    return tuple(zip(labels, first, strict=True))
