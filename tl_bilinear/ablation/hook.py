"""Ablate modes by hooks: the MLP's output without lambda (v.x)^2 along u."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tl_bilinear.ablation.layer_edit import LayerEdit, Scale, Texts, layer_edits
from tl_bilinear.ablation.mode_set import chosen_modes
from tl_bilinear.decompositions import Mode
from tl_bilinear.hosts import AbstractHost, get_host

HALF = (torch.float16, torch.bfloat16)


@contextmanager
def ablate(
    model: Any,
    modes: Mode | Sequence[Mode],
    scale: Scale = 0.0,
    *,
    texts: Texts | None = None,
) -> Iterator[Any]:
    """Run a model with modes scaled inside a `with` block; the model is yielded.

    Acts at every position, padding apart (which no token sees), in generation with and without a
    KV cache; blocks nest, and what they subtract adds up.

    Args:
        model: a HookedTransformer, a TransformerBridge or a host.
        modes: one or several, of any layers; a ModeSet only of this very model.
        scale: what a mode's contribution is multiplied with: 0 removes it, -1 reverses it.
            "mean" replaces it, at every position, by its mean over the tokens of `texts`, their
            first ones (BOS) left out, in the model as it is on entry; one pass over the texts.
        texts: for scale "mean"; strings, or rows of token ids.

    Cost: O(modes * d_model) per token.

    Raises:
        ValueError: no mode, modes of another model, a layer that the model does not have or whose
            MLP is gated, a shape that does not fit, a bad scale.
        RuntimeError: at the end, if the model never ran a hooked layer inside the block.
    """
    host = get_host(model)
    edits = layer_edits(host, chosen_modes(host, modes), scale, texts)
    with subtracted(host, edits):
        yield model


@contextmanager
def subtracted(
    host: AbstractHost, edits: Mapping[int, Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Subtract `edit(x)` from the output of each layer's MLP, x being what it reads.

    Raises:
        RuntimeError: at the end, if the model never ran one of the layers.
    """

    def subtract(edit: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, y: y - edit(x).to(y)

    with rewritten(host, {layer: subtract(_cast(edit)) for layer, edit in edits.items()}):
        yield


@contextmanager
def rewritten(
    host: AbstractHost, edits: Mapping[int, Callable[[Tensor, Tensor], Tensor]]
) -> Iterator[None]:
    """Replace the output y of each layer's MLP by `edit(x, y)`; half-precision x come as float32.

    Raises:
        RuntimeError: at the end, if the model never ran one of the layers.
    """
    fired: set[int] = set()
    hooks = [hook for layer, edit in edits.items() for hook in _hooks(host, layer, edit, fired)]
    with host.hooks(hooks):
        yield
    missing = sorted(set(edits) - fired)
    if missing:
        raise RuntimeError(
            f"nothing was ablated: the MLPs of layers {missing} never ran inside the block"
        )


def _hooks(
    host: AbstractHost, layer: int, edit: Callable[[Tensor, Tensor], Tensor], fired: set[int]
) -> list[tuple[str, Callable]]:
    stream: list[Tensor] = []

    def keep_input(value: Tensor, hook: Any) -> None:
        stream[:] = [value]

    def rewrite(value: Tensor, hook: Any) -> Tensor:
        fired.add(layer)
        x = stream.pop()
        # Half precision is too coarse for squares; other dtypes are the model's own.
        return edit(x.float() if x.dtype in HALF else x, value)

    return [(host.mlp_input_site(layer), keep_input), (host.mlp_out_site(layer), rewrite)]


def _cast(edit: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same, with a LayerEdit's numbers brought to the stream's dtype and device only once."""
    held = edit

    def run(x: Tensor) -> Tensor:
        nonlocal held
        if isinstance(held, LayerEdit) and not held.fits(x):
            held = held.to(x)
        return held(x)

    return run
