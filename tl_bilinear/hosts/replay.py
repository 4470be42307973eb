"""The forward pass once more, in float64 from the weights, with the model's own patterns.

Whatever is computed of a replay closes to float64's rounding, whatever the model's own precision
and its norms' is; how far the replay is from the model is checked at every MLP, and shows as a
result's discrepancy.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts.attention import AttentionWeights, folded_attention_weights
from tl_bilinear.hosts.checked_map import mlp_map_on
from tl_bilinear.hosts.gates import NotBilinearError
from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.hosts.norm import Norm
from tl_bilinear.hosts.places import Places, Seen, see
from tl_bilinear.hosts.reading import Reading, target_values
from tl_bilinear.hosts.self_check import TOLERANCES, relative_error


@dataclass(frozen=True, eq=False)
class ReplayedLayer:
    """One layer's streams; what its sublayers read is the norm of the stream before them."""

    before_attention: Float[Tensor, "place d_model"]
    pattern: Float[Tensor, "head place place"]
    attention: Float[Tensor, "place d_model"]
    """What the heads and b_O give, before any norm behind them."""
    before_mlp: Float[Tensor, "place d_model"]
    mlp: Float[Tensor, "place d_model"]
    """What the MLP gives, before any norm behind it."""


@dataclass(frozen=True, eq=False)
class Replay:
    """A prompt's streams from the embedding to the last layer."""

    places: Places
    layers: tuple[ReplayedLayer, ...]
    end: Float[Tensor, "place d_model"]
    """The stream behind the last layer."""
    target: float
    """The sum of the readouts' values, by the model's own logits."""

    @property
    def embedding(self) -> Float[Tensor, "place d_model"]:
        """Token and position embedding."""
        return self.layers[0].before_attention


def replay(host: AbstractHost, places: Places, layer: int | None = None) -> Replay:
    """Run the model, and then its weights in float64 on the same patterns.

    Args:
        layer: the last one; readouts are then directions of the stream behind it.

    Cost: one forward pass per branch and one of ours.

    Raises:
        NotBilinearError: a layer whose output its weights do not reproduce.
        ValueError: a prompt longer than the context.
    """
    layers = range(host.n_layers if layer is None else layer + 1)
    outputs = [host.mlp_out_site(i) for i in layers]
    end = host.final_input_site() if layer is None else _behind_layer(layer)
    seen = see(host, places, [host.embedding_site(), end, *outputs])
    stream, done = seen.values[host.embedding_site()], []
    for i in layers:
        heads, pattern = folded_attention_weights(host, i), seen.patterns[i]
        attention = _attend(host.attention_norm(i), heads, pattern, stream)
        mid = stream + behind(host.attention_post_norm(i), attention)
        x = host.mlp_norm(i).normalize(mid)
        mlp = mlp_map_on(host, i, x)(x)
        _require_same(host, i, mlp, seen.values[outputs[i]])
        done.append(ReplayedLayer(stream, pattern, attention, mid, mlp))
        stream = mid + behind(host.mlp_post_norm(i), mlp)
    return Replay(places, tuple(done), stream, _target(host, places, seen, layer))


def behind(norm: Norm, output: Float[Tensor, "place d_model"]) -> Float[Tensor, "place d_model"]:
    """What reaches the stream of a sublayer's output: the norm behind it, gain and bias."""
    if not norm.exists:
        return output
    out = norm.normalize(output)
    out = out if norm.gain is None else out * norm.gain.to(out)
    return out if norm.bias is None else out + norm.bias.to(out)


def _attend(norm: Norm, heads: AttentionWeights, pattern: Tensor, stream: Tensor) -> Tensor:
    values = heads.values(norm.normalize(stream)) + heads.value_bias[:, None]
    return heads.write(pattern @ values) + heads.out_bias


def _require_same(host: AbstractHost, layer: int, ours: Tensor, models: Tensor) -> None:
    error = relative_error(ours, models)
    # Ten times what one layer may differ by: here all layers below have a part in it.
    if not error <= 10 * TOLERANCES[host.dtype]:
        raise NotBilinearError(
            f"layer {layer}: recomputed from the weights, what its MLP gives differs by "
            f"{error:.1e} of its largest entry, so a circuit would not add up: "
            "tl_bilinear.self_check(model) says whether the MLPs are at fault; if it passes, this "
            "model's attention has a part that is not known here"
        )


def _target(host: AbstractHost, places: Places, seen: Seen, layer: int | None) -> float:
    at = list(places.read_at)
    if layer is not None:
        stream = seen.values[_behind_layer(layer)][at]
        return math.fsum((stream[i] @ r.direction).item() for i, r in enumerate(places.readouts))
    reading = Reading(
        readouts=places.readouts,
        values={hook: value[None, at] for hook, value in seen.values.items()},
        logits=seen.logits[None],
        positions=torch.tensor([at]),
    )
    return math.fsum(target_values(host, reading)[0].tolist())


def _behind_layer(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"
