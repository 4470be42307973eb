"""What a caller may give as features: a dictionary, or plain directions."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.dictionary import Dictionary, Side
from tl_bilinear.hosts.feature_site import InputSite, OutputSite, input_site, output_site
from tl_bilinear.hosts.host import AbstractHost

Features = Dictionary | Tensor


def place_input(
    host: AbstractHost, layer: int, features: Features
) -> tuple[InputSite, Float[Tensor, "n d_model"]]:
    """Where the input features live, and their directions there (decoder rows).

    Plain directions are those of what `host.mlp_map` reads, the normalised stream.

    Raises:
        ValueError: features of another width, or of another place.
    """
    directions = features.decoder if isinstance(features, Dictionary) else features
    _check_width(host, "in_features", directions)
    named = isinstance(features, Dictionary)
    hook = features.hook_name if named else host.mlp_input_site(layer)
    return input_site(host, layer, hook), directions


def place_output(
    host: AbstractHost, layer: int, features: Features, readout: Side
) -> tuple[OutputSite, Float[Tensor, "n d_model"]]:
    """Where the output features live, and the direction that reads each.

    Plain directions are read at what the layer adds to the stream (`hook_mlp_out`).

    Raises:
        ValueError: features of another width, or of another place; an unknown readout.
    """
    if isinstance(features, Dictionary):
        directions, hook = features.directions(readout), features.hook_name
    else:
        directions, hook = features, f"blocks.{layer}.hook_mlp_out"
    _check_width(host, "out_features", directions)
    return output_site(host, layer, hook), directions


def choose(features: Sequence[int] | None, n: int) -> tuple[int, ...]:
    """The output features asked for; all n where none are named.

    Raises:
        ValueError: none, one that does not exist, or one twice.
    """
    chosen = tuple(range(n)) if features is None else tuple(int(f) for f in features)
    wrong = [f for f in chosen if not 0 <= f < n]
    if wrong or not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(
            f"`features` must be different output features, 0 to {n - 1}, got {list(chosen)[:8]}"
            + (f": there is no {wrong[0]}" if wrong else "")
        )
    return chosen


def _check_width(host: AbstractHost, name: str, directions: Tensor) -> None:
    if directions.ndim != 2 or directions.shape[1] != host.d_model or not len(directions):
        raise ValueError(
            f"`{name}` must be directions of this model's {host.d_model} dimensions, one per "
            f"row, got shape {list(directions.shape)}: a dictionary of another model?"
        )
    if not torch.isfinite(directions).all():
        raise ValueError(f"`{name}` has entries that are not finite (NaN or infinite)")
