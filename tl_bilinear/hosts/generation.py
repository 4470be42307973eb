"""Edits that know which positions they see, with and without a KV cache, on padded batches.

With a KV cache (HookedTransformer, bridges of transformers models) hooks see [batch, prompt, ...]
once and then [batch, 1, ...]; without one, and always on native bridges, they see the growing
text; and `generate` pads uneven batches on the left. Positions are therefore read off each forward
pass by itself, never counted: from the attention mask where there is one, else from the length of
the cache that the pass was given. Nothing is kept between passes, so that several `generate` calls,
a pass that failed and beams that were reordered need no care.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.stream import StreamSite, edit_stream, require_stream_site

PositionalEdit = Callable[[Tensor, Int[Tensor, "batch pos"]], Tensor | None]

# hook_embed fires outside the forward pass in HookedTransformer's generate, and patterns and
# rotated heads have no position as their second axis on some hosts.
SITES = ("blocks.", "ln_final.", "unembed.")
WITHOUT_POSITIONS = ("hook_pattern", "hook_attn_scores", "hook_rot_q", "hook_rot_k")


class Positions:
    """Calling it inside a hook gives the positions that this forward pass sees."""

    def __init__(self) -> None:
        self._offer: Callable[[], Tensor] | None = None

    def __call__(self) -> Int[Tensor, "batch pos"]:
        """Per row, counted from 0 at its first token that is no padding; -1 on padding.

        Raises:
            RuntimeError: outside a forward pass of the whole model.
            ValueError: an attention mask that is not [batch, pos].
        """
        if self._offer is None:
            raise RuntimeError("positions are known inside a forward pass of the model only")
        return self._offer()

    def see(self, like: Tensor, seen: int, mask: Tensor | None, given: Tensor | None) -> None:
        """A pass begins: `like` is [batch, pos, ...], behind `seen` positions of a cache."""
        self._offer = lambda: _positions(like.shape[:2], like.device, seen, mask, given)

    def forget(self) -> None:
        self._offer = None


@contextmanager
def token_positions(model: Any) -> Iterator[Positions]:
    """Inside the block, calling what is yielded within a hook gives that pass's positions.

    For hooks of one's own; `hooks_at_positions` hands them to edits.
    """
    host = get_host(model)
    positions = Positions()
    attach = _watch_bridge if host.kind == "TransformerBridge" else _watch_hooked_transformer
    handles = attach(host.model, positions)
    try:
        yield positions
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def hooks_at_positions(
    model: Any, edits: Sequence[tuple[str | StreamSite, PositionalEdit]]
) -> Iterator[Any]:
    """Run or generate with edits that are told which positions they see; the model is yielded.

    Args:
        model: a HookedTransformer, a TransformerBridge or a host.
        edits: (where, edit). Where is a hook name below `blocks.`, `ln_final.` or `unembed.`, or
            a `StreamSite`, which means the same on every host. `edit(value, positions)` returns
            the value instead, [batch, pos, ...], or None to leave it; positions [batch, pos] count
            each row's tokens from 0 (BOS included) and are -1 on padding, where what an edit
            returns reaches no token.

    Raises:
        KeyError: a name that this model has no hook for.
        ValueError: no edit; a hook outside the forward pass (hook_embed: edit
            `StreamSite(0, "pre")`) or without an axis of positions (patterns); inside a forward
            pass, a value or mask of another shape than the pass's own.
        RuntimeError: at the end, for edits that never ran inside the block.
    """
    host = get_host(model)
    if not edits:
        raise ValueError("`edits` is empty: give at least one (where, edit)")
    _require_places(host, [place for place, _ in edits])
    fired: set[int] = set()
    with ExitStack() as stack:
        positions = stack.enter_context(token_positions(host))
        for index, (place, edit) in enumerate(edits):
            run = _with_positions(str(place), edit, positions, lambda i=index: fired.add(i))
            if isinstance(place, StreamSite):
                stack.enter_context(edit_stream(host, place.layer, place.where, run))
            else:
                stack.enter_context(host.hooks([(place, lambda value, hook, run=run: run(value))]))
        yield model
    missing = [str(place) for index, (place, _) in enumerate(edits) if index not in fired]
    if missing:
        raise RuntimeError(f"nothing was edited: the model never ran {missing} inside the block")


def _with_positions(
    place: str, edit: PositionalEdit, positions: Positions, fire: Callable[[], None]
) -> Callable[[Tensor], Tensor | None]:
    def run(value: Tensor) -> Tensor | None:
        where = positions()
        if value.shape[:2] != where.shape:
            raise ValueError(
                f"{place} holds {list(value.shape)}, this forward pass [batch, pos] = "
                f"{list(where.shape)}: an edit at positions needs a hook of [batch, pos, ...]"
            )
        fire()
        edited = edit(value, where)
        if edited is not None and edited.shape != value.shape:
            raise ValueError(
                f"the edit at {place} returned {list(edited.shape)} for {list(value.shape)}"
            )
        return edited

    return run


def _require_places(host: AbstractHost, places: Sequence[str | StreamSite]) -> None:
    for place in places:
        if isinstance(place, StreamSite):
            require_stream_site(host, place)
        elif not place.startswith(SITES) or place.endswith(WITHOUT_POSITIONS):
            raise ValueError(
                f"{place!r} cannot be edited at positions: it fires outside the forward pass, or "
                "has no axis of positions after its batch axis. Give a hook of blocks., "
                'ln_final. or unembed., or StreamSite(0, "pre") for the embedding'
            )
    host.require_sites([place for place in places if isinstance(place, str)])


# ---- what a forward pass sees -----------------------------------------------------------------


def _watch_bridge(bridge: Any, positions: Positions) -> list[Any]:
    """The wrapped model's own arguments: tokens, mask, position ids and cache."""

    def begin(module: nn.Module, args: tuple, kwargs: dict) -> None:
        tokens = args[0] if args else kwargs.get("input_ids")
        like = tokens if tokens is not None else kwargs["inputs_embeds"]
        cache = kwargs.get("past_key_values")
        seen = 0 if cache is None else cache.get_seq_length()
        positions.see(like, seen, kwargs.get("attention_mask"), kwargs.get("position_ids"))

    def end(module: nn.Module, args: tuple, output: Any) -> None:
        positions.forget()

    model = bridge.original_model
    return [
        model.register_forward_pre_hook(begin, with_kwargs=True),
        model.register_forward_hook(end, always_call=True),
    ]


def _watch_hooked_transformer(model: Any, positions: Positions) -> list[Any]:
    """Every block's arguments: generate runs `forward` without the model's module hooks."""

    def begin(module: nn.Module, args: tuple, kwargs: dict) -> None:
        entry = kwargs.get("past_kv_cache_entry")
        seen = 0 if entry is None else entry.past_keys.shape[1]
        positions.see(args[0], seen, kwargs.get("attention_mask"), None)

    return [block.register_forward_pre_hook(begin, with_kwargs=True) for block in model.blocks]


def _positions(
    shape: torch.Size, device: torch.device, seen: int, mask: Tensor | None, given: Tensor | None
) -> Int[Tensor, "batch pos"]:
    batch, length = shape
    if given is not None:
        if given.ndim != 2:
            raise ValueError(f"position ids must be [batch, pos], got {list(given.shape)}")
        found = given.to(device).expand(batch, length).clone()
    else:
        found = torch.arange(seen, seen + length, device=device).expand(batch, length).clone()
    if mask is None:
        return found
    if mask.ndim != 2 or mask.shape[0] != batch or mask.shape[1] < length:
        raise ValueError(
            f"the attention mask must be [batch, pos] = [{batch}, {seen + length}], got "
            f"{list(mask.shape)}: positions cannot be read off it"
        )
    kept = mask.to(device) != 0
    if given is None:
        # A token's position is the number of tokens before it, as TransformerLens counts.
        found = (kept.long().cumsum(1) - 1)[:, -length:]
    return found.masked_fill(~kept[:, -length:], -1)
