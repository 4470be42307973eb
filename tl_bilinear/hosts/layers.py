"""Which layers an analysis is of: all, or those that are asked for."""

from collections.abc import Sequence

from tl_bilinear.hosts.host import AbstractHost


def checked_layers(host: AbstractHost, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers, all of the model's where None; or a ValueError."""
    if layers is None:
        return tuple(range(host.n_layers))
    whole = all(isinstance(layer, int) for layer in layers)
    wrong = not whole or any(not 0 <= layer < host.n_layers for layer in layers)
    if wrong or not layers or len(set(layers)) != len(layers):
        raise ValueError(
            f"`layers` must be different layers of this model's {host.n_layers} "
            f"(0-{host.n_layers - 1}), got {list(layers)}"
        )
    return tuple(layers)
