"""Edits of the residual stream that mean the same on every host.

`hook_resid_mid` is the stream on a HookedTransformer, but on a bridge it is only what the MLP's
norm reads: an edit there leaves the stream itself as it was. `edit_stream` changes the stream:
whatever comes after, the residual sum included, sees the edited one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.writing import SHOWN

Where = Literal["pre", "mid", "post"]
Edit = Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch pos d_model"] | None]


@dataclass(frozen=True)
class StreamSite:
    """The residual stream at one of three places of a block."""

    layer: int
    where: Where
    """Before the attention, between attention and MLP, or after the MLP."""

    def __str__(self) -> str:
        return f"the stream of layer {self.layer}, {self.where}"


@contextmanager
def edit_stream(model: Any, layer: int, where: Where, edit: Edit) -> Iterator[Any]:
    """Run a model with its residual stream replaced by `edit(stream)`; the model is yielded.

    Gradients pass through the edit. Several edits nest; in a block "pre" acts before "mid"
    and "mid" before "post", in whatever order they were entered.

    Args:
        model: a HookedTransformer, a TransformerBridge or a host.
        where: "pre" before the attention, "mid" between attention and MLP, "post" after the MLP.
        edit: the stream, [batch, pos, d_model], to the stream instead; None leaves it. With a KV
            cache it sees the new positions only (`hosts.generation.hooks_at_positions`).

    Raises:
        ValueError: a layer or place that does not exist; "mid" where attention and MLP stand in
            parallel, or where the block scales what its sublayers write.
        RuntimeError: at the end, if the model never ran there inside the block.
    """
    host = get_host(model)
    site = StreamSite(layer, where)
    fired: list[bool] = []

    def counted(stream: Tensor) -> Tensor:
        fired.append(True)
        edited = edit(stream)
        return stream if edited is None else edited

    with _attached(host, site, counted):
        yield model
    if not fired:
        raise RuntimeError(f"nothing was edited: the model never ran {site} inside the block")


def require_stream_site(host: AbstractHost, site: StreamSite) -> None:
    """Raise ValueError for a place that this model does not have, or that cannot be edited."""
    if site.where not in get_args(Where):
        raise ValueError(f'`where` must be "pre", "mid" or "post", got {site.where!r}')
    block = host._block(site.layer)
    if site.where != "mid":
        return
    name = f"blocks.{site.layer}.hook_resid_mid"
    if name not in host.model.hook_dict:
        raise ValueError(
            f"{site}: this block has no stream between attention and MLP (they stand in parallel, "
            'or it has no MLP): edit "pre" or "post"'
        )
    if host.kind == "TransformerBridge" and "hook_attn_out" not in block.hook_aliases:
        raise ValueError(
            f"{site}: this block scales what its attention writes, so the stream between "
            'attention and MLP cannot be edited: edit "pre" or "post"'
        )
    if host.kind == "TransformerBridge":
        _require_sum(host, site)


def _attached(host: AbstractHost, site: StreamSite, edit: Callable[[Tensor], Tensor]) -> Any:
    require_stream_site(host, site)
    if site.where == "mid" and host.kind == "TransformerBridge":
        return _mid_of_bridge(host, site, edit)
    name = f"blocks.{site.layer}.hook_resid_{site.where}"
    return host.hooks([(name, lambda value, hook: edit(value))])


@contextmanager
def _mid_of_bridge(
    host: AbstractHost, site: StreamSite, edit: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Change what the attention writes so that the block's own sum is the edited stream.

    By module hooks, which see what TransformerLens' hooks have left: the block's input, and the
    output of its attention, or of the norm behind it.
    """
    block = host._block(site.layer)
    writer = getattr(block, block.hook_aliases["hook_attn_out"].removesuffix(".hook_out"))
    before: list[Tensor] = []

    def keep_input(module: nn.Module, args: tuple, kwargs: dict) -> None:
        before[:] = [args[0] if args else kwargs["hidden_states"]]

    def write(module: nn.Module, args: tuple, output: Any) -> Any:
        written = output[0] if isinstance(output, tuple) else output
        stream = before[0] + written
        written = written + (edit(stream) - stream)  # exact where nothing is edited
        return (written, *output[1:]) if isinstance(output, tuple) else written

    handles = [
        block.original_component.register_forward_pre_hook(keep_input, with_kwargs=True),
        writer.register_forward_hook(write),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _require_sum(host: AbstractHost, site: StreamSite) -> None:
    """Raise ValueError where what the MLP reads is not the stream plus the attention's output.

    Costs nothing for the architectures that are tested, one forward pass of two tokens else.
    """
    if type(host.model.adapter).__name__ in SHOWN:
        return
    names = [f"blocks.{site.layer}.hook_{name}" for name in ("resid_pre", "attn_out", "resid_mid")]
    tokens = torch.tensor([[0, min(1, host.d_vocab - 1)]])
    _, cache = host.read(tokens, names, attention_mask=torch.ones_like(tokens))
    pre, written, mid = (cache[name].double() for name in names)
    limit = 1e-4 if host.dtype in (torch.float32, torch.float64) else 5e-2
    if not (pre + written - mid).abs().max() <= limit * mid.abs().max():
        raise ValueError(
            f"{site} cannot be edited: this block does not add what its attention writes to the "
            'stream as it is (a multiplier?). Edit "pre" or "post"'
        )
