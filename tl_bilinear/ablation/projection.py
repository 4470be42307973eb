"""Whole directions taken out of an MLP by hooks: of what it writes, or of what it reads.

A larger edit than ablating modes, hence its own name. An output mode u takes everything that the
MLP writes along u (all modes of u, the linear part and the bias); an input mode v everything that
it reads along v, in every product: removing v from both legs is not removing the mode v v^T.

    outputs: y -= (1 - scale) P y              inputs: y = f(x - (1 - scale) P x)

P is the orthogonal projection onto the directions of one layer together.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.ablation.hook import rewritten, subtracted
from tl_bilinear.ablation.layer_edit import require_layer, require_number
from tl_bilinear.ablation.wanted import orthonormal
from tl_bilinear.decompositions import InputMode, OutputMode
from tl_bilinear.hosts import AbstractHost, get_host

Kind = TypeVar("Kind", OutputMode, InputMode)


@contextmanager
def project_outputs(
    model: Any, modes: OutputMode | Sequence[OutputMode], scale: float = 0.0
) -> Iterator[Any]:
    """Run a model whose MLPs write `scale` times what they did along some directions.

    Gated MLPs may be projected as well. Nested in or around `ablate`, the outer block acts first.

    Args:
        model: a HookedTransformer, a TransformerBridge or a host.
        scale: 0 removes, -1 reverses.

    Raises:
        ValueError: no mode, a layer that the model does not have, a direction that does not fit.
        RuntimeError: at the end, if the model never ran a hooked layer inside the block.
    """
    host = get_host(model)

    def projected(basis: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        def edit(x: Tensor, y: Tensor) -> Tensor:
            rows, wide = basis.to(x), y.to(x)
            return y - (1 - scale) * ((wide @ rows.mT) @ rows).to(y)

        return edit

    bases = layer_bases(host, modes, OutputMode, scale)
    with rewritten(host, {layer: projected(basis) for layer, basis in bases.items()}):
        yield model


@contextmanager
def project_inputs(
    model: Any, modes: InputMode | Sequence[InputMode], scale: float = 0.0
) -> Iterator[Any]:
    """Run a model whose MLPs read `scale` times what they did along some directions.

    Costs as much as the edited MLPs do once more.

    Args:
        model: a HookedTransformer, a TransformerBridge or a host.
        scale: 0 removes, -1 reverses.

    Raises:
        ValueError: no mode, a layer that the model does not have or whose MLP is gated, a
            direction that does not fit.
        RuntimeError: at the end, if the model never ran a hooked layer inside the block.
    """
    host = get_host(model)
    bases = layer_bases(host, modes, InputMode, scale)
    for layer in bases:
        _ = host.mlp_map(layer)

    def lost(layer: int, basis: Tensor) -> Callable[[Tensor], Tensor]:
        def edit(x: Tensor) -> Tensor:
            weights, rows = host.mlp_map(layer).to(x), basis.to(x)
            return weights(x) - weights(x - (1 - scale) * (x @ rows.mT) @ rows)

        return edit

    with subtracted(host, {layer: lost(layer, basis) for layer, basis in bases.items()}):
        yield model


def layer_bases(
    host: AbstractHost, modes: Kind | Sequence[Kind], kind: type[Kind], scale: float
) -> dict[int, Float[Tensor, "k d_model"]]:
    """Orthonormal rows that span each layer's directions, in float64.

    Raises:
        ValueError: as `project_outputs`.
    """
    chosen = [modes] if isinstance(modes, kind) else list(modes)
    wrong = [type(mode).__name__ for mode in chosen if not isinstance(mode, kind)]
    if wrong or not chosen:
        raise ValueError(f"one {kind.__name__} at least is needed, got {wrong or 'none'}")
    require_number(scale)
    layers: dict[int, list[Tensor]] = {}
    for mode in chosen:
        require_layer(host, mode.layer, repr(mode))
        u = mode.direction.double()
        if tuple(u.shape) != (host.d_model,) or not u.isfinite().all() or not u.any():
            raise ValueError(
                f"{mode!r} needs a finite direction of shape ({host.d_model},) that is not zero, "
                f"got shape {tuple(u.shape)}"
            )
        layers.setdefault(mode.layer, []).append(u)
    return {layer: orthonormal(torch.stack(rows)) for layer, rows in sorted(layers.items())}
