"""What a target's readouts see: hook values and logits where each of them reads.

From prompts this takes one forward pass per string of appended tokens; from an
ActivationCache it takes none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.hosts.prompts import Text, require_in_context, split_prompts, tokenize
from tl_bilinear.hosts.target import Readout, Target, make_readouts

Positions = Literal["last", "all"]


@dataclass(frozen=True, eq=False)
class Reading:
    """Values at the sites where the readouts read, in float64."""

    readouts: tuple[Readout, ...]
    """One per site."""
    values: dict[str, Float[Tensor, "batch site width"]]
    """Per hook name; trailing axes are flattened."""
    logits: Float[Tensor, "batch site d_vocab"]
    positions: Int[Tensor, "batch site"]

    def labels(self) -> tuple[str, ...]:
        """A name for each site."""
        names = [readout.label for readout in self.readouts]
        if len(set(names)) == len(names):
            return tuple(names)
        places = self.positions[0].tolist()
        return tuple(f"{name} at {place}" for name, place in zip(names, places, strict=True))


def take_reading(
    host: AbstractHost,
    text: Text | Any,
    target: Target,
    hooks: Sequence[str],
    positions: Positions = "last",
) -> Reading:
    """The reading of a target behind prompts, or from a cache, with what `hooks` see.

    Args:
        text: a text, several texts, token ids [pos] or [batch, pos], or an ActivationCache
            with its batch axis.
        positions: "last" reads where each prompt ends, "all" at every position of prompts of
            one length (for targets of a single token, and directions).

    Raises:
        ValueError: bad prompts or targets, a prompt longer than the context, a cache that
            lacks hooks, "all" for a target of several tokens or prompts of several lengths.
    """
    if positions not in ("last", "all"):
        raise ValueError(f'`positions` must be "last" or "all", got {positions!r}')
    hooks = list(dict.fromkeys([*hooks, *_final_hooks(host)]))
    if hasattr(text, "cache_dict"):
        readouts = make_readouts(host, target, ["a"])
        _require_single(readouts, "a cache cannot be extended by")
        found = _from_cache(host, text, hooks)
        length = found[hooks[0]].shape[1]
        places = torch.arange(length) if positions == "all" else torch.tensor([length - 1])
        values = {hook: value[:, places].flatten(2).double() for hook, value in found.items()}
        rows = values[hooks[0]].shape[0]
        return Reading(
            readouts=readouts * len(places),
            values=values,
            logits=softcapped(host, unembed(host, values[host.final_input_site()])),
            positions=places.expand(rows, -1),
        )
    prompts = split_prompts(text)
    readouts = make_readouts(host, target, prompts)
    tokens = tokenize(host, prompts)
    if positions == "all":
        _require_single(readouts, 'positions="all" cannot append')
        return _read_everywhere(host, tokens, readouts[0], hooks)
    return read_ends(host, tokens, readouts, hooks)


def read_ends(
    host: AbstractHost,
    prompts: Sequence[Tensor],
    readouts: Sequence[Readout],
    hooks: Sequence[str],
) -> Reading:
    """Run the prompts with each maximal prefix appended and gather what the readouts read.

    Rows are padded on the right, which a causal model does not see.
    """
    hooks = list(dict.fromkeys([*hooks, *_final_hooks(host)]))
    longest = _maximal([readout.prefix for readout in readouts])
    runs = {prefix: _run(host, prompts, prefix, hooks) for prefix in longest}
    logits, positions = [], []
    values: dict[str, list[Tensor]] = {hook: [] for hook in hooks}
    rows = torch.arange(len(prompts))
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    for readout in readouts:
        run_prefix = next(p for p in longest if p[: len(readout.prefix)] == readout.prefix)
        run_logits, cache = runs[run_prefix]
        position = lengths + len(readout.prefix) - 1
        positions.append(position)
        logits.append(run_logits[rows, position])
        for hook in hooks:
            values[hook].append(cache[hook][rows, position].flatten(1))
    return Reading(
        readouts=tuple(readouts),
        values={hook: torch.stack(found, 1).double() for hook, found in values.items()},
        logits=torch.stack(logits, 1).double(),
        positions=torch.stack(positions, 1),
    )


def directions(host: AbstractHost, reading: Reading) -> Float[Tensor, "site d_model"]:
    """u per site: the readout's direction with the final norm folded in, before 1/rho."""
    return host.fold_readout(torch.stack([readout.direction for readout in reading.readouts]))


def denominators(host: AbstractHost, reading: Reading) -> Float[Tensor, "batch site"]:
    """rho, the final norm's denominator where each readout reads; ones without a norm."""
    scale = host.final_scale_site()
    if scale is None:
        return torch.ones_like(reading.logits[..., 0])
    return reading.values[scale][..., 0]


def target_values(host: AbstractHost, reading: Reading) -> Float[Tensor, "batch site"]:
    """The model's own value of each readout: from its logits, or from ln_final's output.

    A model that caps its logits is read before the cap, where its parts still add up.
    """
    values = []
    every = reading.logits
    if host.logit_softcap is not None:
        every = unembed(host, reading.values[host.final_input_site()])
    for site, readout in enumerate(reading.readouts):
        if readout.weights:
            logits = every[:, site]
            parts = [weight * logits[:, token] for token, weight in readout.weights.items()]
            values.append(torch.stack(parts).sum(0))
        else:
            normalised = reading.values[host.final_input_site()][:, site]
            u = host.fold_readout(readout.direction)
            values.append(normalised @ u + host.readout_offset(readout.direction))
    return torch.stack(values, 1)


def unembed(
    host: AbstractHost, normalised: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_vocab"]:
    """Logits before any softcap, from ln_final's output before its gain; in float64."""
    norm, weights = host.final_norm(), host.W_U.detach().double()
    out = normalised if norm.gain is None else normalised * norm.gain.double()
    out = out if norm.bias is None else out + norm.bias.double()
    return out @ weights + host.b_U.detach().double()


def softcapped(
    host: AbstractHost, logits: Float[Tensor, "*batch d_vocab"]
) -> Float[Tensor, "*batch d_vocab"]:
    """c tanh(logits / c) where the model caps its logits."""
    cap = host.logit_softcap
    return logits if cap is None else cap * (logits / cap).tanh()


def _final_hooks(host: AbstractHost) -> list[str]:
    scale = host.final_scale_site()
    return [host.final_input_site(), *([scale] if scale else [])]


def _require_single(readouts: Sequence[Readout], what: str) -> None:
    if len(readouts) > 1 or readouts[0].prefix:
        raise ValueError(
            f"{what} the first tokens of a target of several tokens "
            f"({', '.join(readout.label for readout in readouts)}): give texts or token ids, and "
            'positions="last"'
        )


def _from_cache(host: AbstractHost, cache: Any, hooks: Sequence[str]) -> dict[str, Tensor]:
    missing = [hook for hook in hooks if hook not in cache.cache_dict]
    if missing:
        raise ValueError(f"the cache lacks {missing}: run model.run_with_cache without a filter")
    found = {hook: cache.cache_dict[hook].detach() for hook in hooks}
    if any(value.ndim < 3 for value in found.values()):
        raise ValueError("the cache has no batch axis: run with remove_batch_dim=False")
    return found


def _read_everywhere(
    host: AbstractHost, tokens: Sequence[Tensor], readout: Readout, hooks: Sequence[str]
) -> Reading:
    lengths = sorted({len(row) for row in tokens})
    if len(lengths) > 1:
        raise ValueError(
            f'positions="all" needs prompts of one length, got lengths {lengths}: attribute '
            "them one by one"
        )
    logits, cache = _run(host, tokens, (), hooks)
    return Reading(
        readouts=(readout,) * lengths[0],
        values={hook: cache[hook].flatten(2).double() for hook in hooks},
        logits=logits.double(),
        positions=torch.arange(lengths[0]).expand(len(tokens), -1),
    )


def _maximal(prefixes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The prefixes that no other one begins with."""
    unique = set(prefixes)
    return sorted(p for p in unique if not any(q != p and q[: len(p)] == p for q in unique))


def _run(
    host: AbstractHost,
    prompts: Sequence[Tensor],
    prefix: tuple[int, ...],
    hooks: Sequence[str],
) -> tuple[Tensor, dict[str, Tensor]]:
    rows = [torch.cat([prompt, torch.tensor(prefix, dtype=prompt.dtype)]) for prompt in prompts]
    longest = max(len(row) for row in rows)
    require_in_context(host, longest)
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return host.read(tokens, hooks)
