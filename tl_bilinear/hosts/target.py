"""What is attributed: a logit, a difference of logits, a string of tokens, a direction.

A target becomes readouts. Each readout appends tokens to the prompt (none for a single
token) and reads one direction after the final norm, at the last position. A string of
several tokens is the sum of its tokens' logits, each read where the model would predict it;
a pair is the difference of two targets, and shared first tokens cancel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts import AbstractHost

Target = str | int | Tensor | tuple["Target", "Target"]


@dataclass(frozen=True, eq=False)
class Readout:
    """One direction, read after the final norm once `prefix` has followed the prompt."""

    prefix: tuple[int, ...]
    weights: dict[int, float]
    """Weight of each token's logit; empty for a direction."""
    direction: Float[Tensor, " d_model"]
    label: str


def make_readouts(
    host: AbstractHost, target: Target, prompts: Sequence[str | Tensor]
) -> tuple[Readout, ...]:
    """The readouts of a target after these prompts, in the order of their prefixes.

    Raises:
        ValueError: an empty or unknown target, a token id out of range, a string whose tokens
            depend on the prompt or merge with it, a pair whose halves are equal, a direction
            of the wrong shape or with numbers that are not finite.
    """
    if isinstance(target, Tensor):
        return (Readout((), {}, _direction(host, target), "direction"),)
    terms = _terms(host, target, prompts)
    by_prefix: dict[tuple[int, ...], dict[int, float]] = {}
    for prefix, token, weight in terms:
        weights = by_prefix.setdefault(prefix, {})
        weights[token] = weights.get(token, 0.0) + weight
    readouts = []
    for prefix in sorted(by_prefix, key=lambda prefix: (len(prefix), prefix)):
        weights = {token: w for token, w in by_prefix[prefix].items() if w != 0}
        if weights:
            readouts.append(_readout(host, prefix, weights))
    if not readouts:
        raise ValueError(f"the two halves of the target {target!r} are the same tokens")
    return tuple(readouts)


def readout_bias(host: AbstractHost, readout: Readout) -> Float[Tensor, ""]:
    """What the biases behind the final norm add to a readout."""
    offset = host.readout_offset(readout.direction)
    for token, weight in readout.weights.items():
        offset = offset + weight * host.b_U[token].detach().double()
    return offset


def _readout(host: AbstractHost, prefix: tuple[int, ...], weights: dict[int, float]) -> Readout:
    direction = torch.zeros(host.d_model, dtype=torch.float64, device=host.device)
    for token, weight in weights.items():
        direction += weight * host.W_U[:, token].detach().double()
    return Readout(prefix, weights, direction, _label(host, prefix, weights))


def _label(host: AbstractHost, prefix: tuple[int, ...], weights: dict[int, float]) -> str:
    if host.model.tokenizer is None:
        names = {token: str(token) for token in (*weights, *prefix)}
    else:
        ids = list({*weights, *prefix})
        names = dict(zip(ids, host.str_tokens(torch.tensor(ids)), strict=True))
    signs = [f"{'+' if w > 0 else '−'} {names[token]!r}" for token, w in weights.items()]
    text = " ".join(signs).removeprefix("+ ")
    before = "".join(names[token] for token in prefix)
    return f"{text} after {before!r}" if before else text


def _direction(host: AbstractHost, direction: Tensor) -> Float[Tensor, " d_model"]:
    if direction.shape != (host.d_model,):
        raise ValueError(
            f"a target direction must have shape [{host.d_model}] (d_model: it is read after "
            f"the final norm, as a column of W_U is), got {list(direction.shape)}"
        )
    if not torch.isfinite(direction).all():
        raise ValueError("the target direction has entries that are not finite")
    return direction.detach().to(host.device, torch.float64)


def _terms(
    host: AbstractHost, target: Target, prompts: Sequence[str | Tensor]
) -> list[tuple[tuple[int, ...], int, float]]:
    """(prefix, token, weight) for each logit in the target."""
    if isinstance(target, tuple):
        if len(target) != 2 or any(isinstance(half, (Tensor, tuple)) for half in target):
            raise ValueError(
                f"a pair must hold two strings or token ids, got {target!r}: the target is the "
                "first minus the second"
            )
        first, second = (_terms(host, half, prompts) for half in target)
        return first + [(prefix, token, -weight) for prefix, token, weight in second]
    if isinstance(target, str):
        ids = _continuation(host, target, prompts)
        return [(tuple(ids[:i]), token, 1.0) for i, token in enumerate(ids)]
    if isinstance(target, int) and not isinstance(target, bool):
        if not 0 <= target < host.d_vocab:
            raise ValueError(f"token {target} is out of range: d_vocab is {host.d_vocab}")
        return [((), target, 1.0)]
    raise ValueError(
        "a target is a string, a token id, a pair of these (their difference) or a direction "
        f"of d_model entries, got {type(target).__name__}"
    )


def _continuation(
    host: AbstractHost, target: str, prompts: Sequence[str | Tensor]
) -> tuple[int, ...]:
    """The tokens that `target` becomes behind each prompt; they must be the same behind all."""
    if not target:
        raise ValueError("the target is an empty string: give at least one token's text")
    found: dict[tuple[int, ...], str] = {}
    for prompt in prompts:
        text = prompt if isinstance(prompt, str) else _decode(host, prompt)
        before = host.to_tokens(text).tolist()
        whole = host.to_tokens(text + target).tolist()
        if whole[: len(before)] != before or len(whole) == len(before):
            raise ValueError(
                f"the target {target!r} merges with the end of the prompt {text[-20:]!r} into "
                "other tokens: begin the target with a space, or give a token id"
            )
        found.setdefault(tuple(whole[len(before) :]), text)
    if len(found) > 1:
        raise ValueError(
            f"the target {target!r} becomes different tokens behind these prompts "
            f"({sorted(found)}): attribute the prompts one by one"
        )
    return next(iter(found))


def _decode(host: AbstractHost, tokens: Tensor) -> str:
    special = set(host.tokenizer.all_special_ids)
    return host.tokenizer.decode([t for t in tokens.tolist() if t not in special])
