"""Opening a gated model for reading with its gates' slopes frozen."""

from typing import Any, TypeVar

from tl_bilinear.hosts import get_host
from tl_bilinear.hosts.gates import FROZEN

Model = TypeVar("Model")


def freeze_gates_(model: Model) -> Model:
    """Let a gated model be read on prompts, as `load(..., frozen_gates=True)` does.

    The model computes what it computed before; only a mark is set on it. From then on
    `self_check` recomputes its MLPs with their gates, and `attribute_modes` takes each token's
    slopes act(g)/g from the forward pass and holds them fixed. Bilinear layers stay what they
    are (their slope is one). A copy (copy.deepcopy) keeps the mark, a saved folder does not.

    Returns:
        The model.

    Raises:
        ValueError: an MLP without a gate, or a gate whose slope is not known.
    """
    host = get_host(model)
    for layer in range(host.n_layers):
        host.gate(layer)
    unwrapped: Any = host.model
    setattr(unwrapped, FROZEN, True)
    return model
