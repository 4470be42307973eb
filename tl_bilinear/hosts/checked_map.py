"""An MLP as a map of the inputs that were read, refused where it does not give what it gave."""

from jaxtyping import Float
from torch import Tensor

from tl_bilinear.frozen_map import FrozenMap
from tl_bilinear.hosts.gates import activation_name
from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.hosts.self_check import TOLERANCES, NotBilinearError, relative_error
from tl_bilinear.quadratic_map import QuadraticMap


def checked_mlp_map(
    host: AbstractHost,
    layer: int,
    stream: Float[Tensor, "*batch d_model"],
    written: Float[Tensor, "*batch d_model"],
) -> QuadraticMap | FrozenMap:
    """The MLP as a map in the inputs' dtype; per token where its gate is frozen.

    Args:
        stream: what the MLP read (`mlp_input_site`).
        written: what the model's own MLP gave there (`mlp_out_site`).

    Raises:
        NotBilinearError: an MLP whose output its weights do not reproduce.
    """
    frozen = host.frozen_gates and host.is_gated(layer)
    weights = (
        host.frozen_mlp_map(layer, stream)
        if frozen
        else host.folded_mlp_weights(layer).to(stream.dtype)
    )
    error = relative_error(weights(stream), written)
    if not error <= TOLERANCES[host.dtype]:
        raise NotBilinearError(_refusal(host, layer, error))
    return weights


def _refusal(host: AbstractHost, layer: int, error: float) -> str:
    way_out = "tl_bilinear.self_check(model) says why"
    if host.is_gated(layer) and not host.frozen_gates:
        way_out = (
            f"the gate has a {activation_name(host.gate_activation(layer))} activation. Load the "
            "model with frozen_gates=True to read it on a prompt, or convert it "
            "(tl_bilinear.bilinearize)"
        )
    return (
        f"layer {layer}: its output differs from what its weights give by {error:.1e} of its "
        f"largest entry (tolerance {TOLERANCES[host.dtype]:.0e}), so modes would not add up: "
        f"{way_out}"
    )
