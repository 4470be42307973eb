"""Places: the positions of a prompt and of everything that a target appends to it.

A target of several tokens is read behind several prefixes, and the two halves of a pair may append
different ones. A causal model sees the same stream wherever the tokens so far agree, so all runs
together are a tree: the prompt, then branches. A place is a node of that tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_bilinear.hosts.attention import pattern_site
from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.hosts.prompts import require_in_context
from tl_bilinear.hosts.target import Readout


@dataclass(frozen=True, eq=False)
class Run:
    """One row of tokens, and the place of each."""

    tokens: Int[Tensor, " pos"]
    places: Int[Tensor, " pos"]


@dataclass(frozen=True, eq=False)
class Places:
    """The tree of a prompt and its branches."""

    tokens: Int[Tensor, " place"]
    runs: tuple[Run, ...]
    readouts: tuple[Readout, ...]
    read_at: tuple[int, ...]
    """The place of each readout."""

    @property
    def positions(self) -> list[int]:
        """The position of every place in its runs."""
        found = {int(place): i for run in self.runs for i, place in enumerate(run.places)}
        return [found[place] for place in range(len(self.tokens))]


def find_places(prompt: Int[Tensor, " pos"], readouts: Sequence[Readout], position: int) -> Places:
    """The places of a prompt that readouts follow; those without a prefix read at `position`."""
    tokens = prompt.tolist()
    place_of: dict[tuple[int, ...], int] = {(): len(prompt) - 1}
    for readout in readouts:
        for end in range(1, len(readout.prefix) + 1):
            if readout.prefix[:end] not in place_of:
                place_of[readout.prefix[:end]] = len(tokens)
                tokens.append(readout.prefix[end - 1])
    ends = [p for p in place_of if not any(q[: len(p)] == p and q != p for q in place_of)]
    runs = []
    for prefix in ends:
        branch = [place_of[prefix[: end + 1]] for end in range(len(prefix))]
        row = torch.cat([prompt, torch.tensor(prefix, dtype=prompt.dtype)])
        runs.append(Run(row, torch.tensor([*range(len(prompt)), *branch])))
    return Places(
        tokens=torch.tensor(tokens),
        runs=tuple(runs),
        readouts=tuple(readouts),
        read_at=tuple(place_of[r.prefix] if r.prefix else position for r in readouts),
    )


@dataclass(frozen=True, eq=False)
class Seen:
    """What the model computed at every place, in float64."""

    values: dict[str, Float[Tensor, "place width"]]
    """Per hook name; trailing axes are flattened."""
    patterns: Float[Tensor, "layer head place place"]
    """Queries, then keys; zero between branches."""
    logits: Float[Tensor, "readout d_vocab"]


def see(host: AbstractHost, places: Places, hooks: Sequence[str]) -> Seen:
    """One forward pass per branch.

    Raises:
        ValueError: a run longer than the context.
    """
    longest = max(len(run.tokens) for run in places.runs)
    require_in_context(host, longest)
    n, sites = len(places.tokens), [pattern_site(layer) for layer in range(host.n_layers)]
    patterns = torch.zeros(host.n_layers, host.n_heads, n, n, dtype=torch.float64)
    patterns = patterns.to(host.device)
    values: dict[str, Tensor] = {}
    logits: list[Tensor] = [torch.empty(0)] * len(places.readouts)
    for run in places.runs:
        run_logits, cache = host.read(run.tokens[None], [*hooks, *sites])
        at = run.places.to(host.device)
        for layer, site in enumerate(sites):
            patterns[layer][:, at[:, None], at] = cache[site][0].double()
        for hook in hooks:
            found = cache[hook][0].flatten(1).double()
            whole = values.setdefault(hook, found.new_zeros(n, found.shape[1]))
            whole[at] = found
        where = {place: i for i, place in enumerate(run.places.tolist())}
        for i, place in enumerate(places.read_at):
            if place in where:
                logits[i] = run_logits[0, where[place]].double()
    return Seen(values, patterns, torch.stack(logits))
