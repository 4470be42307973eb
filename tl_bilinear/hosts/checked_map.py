"""An MLP as a map of the inputs that were read, refused where it does not give what it gave."""

from jaxtyping import Float
from torch import Tensor

from tl_bilinear.frozen_map import FrozenMap
from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.hosts.self_check import TOLERANCES, NotBilinearError, relative_error
from tl_bilinear.quadratic_map import QuadraticMap


def mlp_map_on(
    host: AbstractHost, layer: int, stream: Float[Tensor, "*batch d_model"]
) -> QuadraticMap | FrozenMap:
    """The MLP in the stream's dtype: one map, or, of gates that are frozen on it, one per token.

    Args:
        stream: what the MLP read (`mlp_input_site`).

    Raises:
        NotBilinearError: a gate that is not frozen.
    """
    if host.frozen_gates and host.is_gated(layer):
        return host.frozen_mlp_map(layer, stream)
    return host.mlp_map(layer).to(stream.dtype)


def checked_mlp_map(
    host: AbstractHost,
    layer: int,
    stream: Float[Tensor, "*batch d_model"],
    written: Float[Tensor, "*batch d_model"],
) -> QuadraticMap | FrozenMap:
    """`mlp_map_on`, refused where it does not give what the model's own MLP gave.

    Args:
        stream: what the MLP read (`mlp_input_site`).
        written: what it gave there (`mlp_out_site`).

    Raises:
        NotBilinearError: a gate that is not frozen, or another MLP whose output its weights do
            not reproduce.
    """
    weights = mlp_map_on(host, layer, stream)
    error = relative_error(weights(stream), written)
    if not error <= TOLERANCES[host.dtype]:
        raise NotBilinearError(
            f"layer {layer}: its output differs from what its weights give by {error:.1e} of its "
            f"largest entry (tolerance {TOLERANCES[host.dtype]:.0e}), so modes would not add up: "
            "tl_bilinear.self_check(model) says why"
        )
    return weights
