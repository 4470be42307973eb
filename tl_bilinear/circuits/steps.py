"""A model's layers as steps back, from directions of what a layer gives to what it reads.

One prompt, frozen: a share is the value itself, x^T M x, and the direction of x is M x. Norm
denominators, patterns and gates' slopes stand still.

Two prompts, nothing frozen (DESIGN 2.6): a share is a difference between the runs, and
d(XY) = mean(X) dY + dX mean(Y) holds for every product. So x1^T M x1 - x0^T M x0 is
(x1 - x0) . M (x1 + x0); a norm gives mean(1/rho) dm + d(1/rho) mean(m), whose second part is a
change of its own; a head gives mean(A) dv + dA mean(v). A gate is the line through its two points,
act(g) = slope g + offset, which makes the MLP one quadratic map that is exact on both runs.

In both, a direction w of x is worth w . end, and `mid` is what products are taken with: end and mid
are both x where a run is frozen, x1 - x0 and x1 + x0 in a contrast.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.circuits.scores import ScoreStep, score_step
from tl_bilinear.frozen_map import FrozenMap
from tl_bilinear.hosts.attention import AttentionWeights, folded_attention_weights
from tl_bilinear.hosts.checked_map import mlp_map_on
from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.hosts.norm import Norm
from tl_bilinear.hosts.replay import Replay
from tl_bilinear.quadratic_map import QuadraticMap


@dataclass(frozen=True, eq=False)
class NormStep:
    """w . norm(m), as a direction of m, with what the denominator's change adds."""

    norm: Norm
    inverse: Float[Tensor, " place"]
    """1/rho, or its mean over two runs."""
    drift: Float[Tensor, "place d_model"] | None
    """d(1/rho) mean(m), gain included: what no direction of dm explains. Of contrasts."""

    def back(
        self, w: Float[Tensor, "*batch d_model"], place: int
    ) -> Float[Tensor, "*batch d_model"]:
        """The directions of the norm's input."""
        return self.norm.fold_readout(w) * self.inverse[place]


@dataclass(frozen=True, eq=False)
class PlaceMaps:
    """An MLP's quadratic map at every place: one for all, or gates that are lines of their own."""

    weights: QuadraticMap
    slope: Float[Tensor, "place rank"] | None = None
    offset: Float[Tensor, "place rank"] | None = None
    """Of the gate's line in a contrast; zero elsewhere."""

    @property
    def shared(self) -> bool:
        return self.slope is None

    def at(self, place: int) -> QuadraticMap:
        """The map of one place."""
        if self.slope is None:
            return self.weights
        own = FrozenMap(self.weights, self.slope).at(place)
        if self.offset is None:
            return own
        return replace(own, left_bias=own.left_bias + self.offset[place])


@dataclass(frozen=True, eq=False)
class LayerStep:
    """Everything that a step back through one layer takes."""

    mlp_norm: NormStep
    maps: PlaceMaps
    mid: Float[Tensor, "place d_model"]
    """Of the normalised stream that the MLP reads."""
    end: Float[Tensor, "place d_model"]
    behind_mlp: NormStep
    mlp_bias: Float[Tensor, " d_model"] | None
    """Of the norm behind the MLP; None in a contrast, where constants cancel."""
    attention_norm: NormStep
    heads: AttentionWeights
    pattern: Float[Tensor, "head place place"]
    """Or its mean over two runs."""
    values: Float[Tensor, "head place d_head"]
    """Without bias, or its change."""
    pattern_change: Float[Tensor, "head place place"] | None
    mean_values: Float[Tensor, "head place d_head"]
    """Bias included, over two runs."""
    behind_attention: NormStep
    attention_bias: Float[Tensor, " d_model"] | None
    """Of the norm behind the attention."""
    scores: ScoreStep | None
    """Where patterns' changes are expanded."""


def layer_step(
    host: AbstractHost, runs: Sequence[Replay], layer: int, expand_patterns: bool = False
) -> LayerStep:
    """The step of one layer, for one run (frozen) or two (their difference)."""
    rows = [run.layers[layer] for run in runs]
    heads, reads = folded_attention_weights(host, layer), host.attention_norm(layer)
    values = [heads.values(reads.normalize(row.before_attention)) for row in rows]
    norm = host.mlp_norm(layer)
    xs = [norm.normalize(row.before_mlp) for row in rows]
    post, attention_post = host.mlp_post_norm(layer), host.attention_post_norm(layer)
    frozen = len(runs) == 1
    return LayerStep(
        mlp_norm=norm_step(_bare(norm), [row.before_mlp for row in rows]),
        maps=_maps(host, layer, xs),
        mid=xs[0] if frozen else xs[0] + xs[1],
        end=ends(xs),
        behind_mlp=norm_step(post, [row.mlp for row in rows]),
        mlp_bias=_bias(post, xs[0]) if frozen else None,
        attention_norm=norm_step(_bare(reads), [row.before_attention for row in rows]),
        heads=heads,
        pattern=_mean([row.pattern for row in rows]),
        values=ends(values),
        pattern_change=None if frozen else ends([row.pattern for row in rows]),
        mean_values=_mean(values) + heads.value_bias[:, None],
        behind_attention=norm_step(attention_post, [row.attention for row in rows]),
        attention_bias=_bias(attention_post, xs[0]) if frozen else None,
        scores=score_step(host, runs, layer) if expand_patterns else None,
    )


def norm_step(norm: Norm, inputs: Sequence[Tensor]) -> NormStep:
    """The step through a norm whose inputs in one run or two are these."""
    inverses = [1 / norm.denominator(m) for m in inputs]
    drift = None
    if len(inputs) == 2 and norm.exists:
        drift = (inverses[0] - inverses[1])[:, None] * norm.centre(_mean(inputs))
        drift = drift if norm.gain is None else drift * norm.gain.to(drift)
    return NormStep(norm, _mean(inverses), drift)


def ends(values: Sequence[Tensor]) -> Tensor:
    """The value of one run, or the difference of two."""
    return values[0] if len(values) == 1 else values[0] - values[1]


def _mean(values: Sequence[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else (values[0] + values[1]) / 2


def _bare(norm: Norm) -> Norm:
    """The norm up to `hook_normalized`: gain and bias are in the weights that read it."""
    return replace(norm, gain=None, bias=None)


def _bias(norm: Norm, like: Tensor) -> Tensor:
    return torch.zeros_like(like[0]) if norm.bias is None else norm.bias.to(like)


def _maps(host: AbstractHost, layer: int, xs: Sequence[Tensor]) -> PlaceMaps:
    gate = host.gate(layer) if host.frozen_gates else None
    if gate is None or len(xs) == 1:
        found = mlp_map_on(host, layer, xs[0])
        if isinstance(found, FrozenMap):
            return PlaceMaps(found.weights, found.slope)
        return PlaceMaps(found)
    weights = host.folded_mlp_weights(layer).to(xs[0])
    inputs = [x @ weights.tensor.left + weights.left_bias for x in xs]
    outputs = [g * gate.slope(g) for g in inputs]
    change = inputs[0] - inputs[1]
    same = change == 0
    slope = (outputs[0] - outputs[1]) / torch.where(same, torch.ones_like(change), change)
    slope = torch.where(same, gate.slope(inputs[0]), slope)
    return PlaceMaps(weights, slope, outputs[1] - slope * inputs[1])
