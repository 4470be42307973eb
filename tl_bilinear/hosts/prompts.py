"""Prompts as padded token batches, one forward pass per string of appended tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.hosts.target import Readout

Prompt = str | Int[Tensor, " pos"]
Text = str | Sequence[str] | Tensor | Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class Reading:
    """Values at the positions where the readouts read."""

    values: dict[str, Float[Tensor, "batch site width"]]
    """Per hook name, in float64; trailing axes are flattened."""
    logits: Float[Tensor, "batch site d_vocab"]
    positions: Int[Tensor, "batch site"]


def split_prompts(text: Text) -> list[Prompt]:
    """One prompt per row: a text, several texts, or token ids [pos] or [batch, pos].

    Raises:
        ValueError: no prompt, an empty one, or something else.
    """
    if isinstance(text, str):
        prompts: list[Prompt] = [text]
    elif isinstance(text, Tensor):
        if text.ndim not in (1, 2) or text.is_floating_point():
            raise ValueError(
                "tokens must be integers of shape [pos] or [batch, pos], got "
                f"{text.dtype} {list(text.shape)}"
            )
        prompts = [text] if text.ndim == 1 else list(text)
    else:
        prompts = list(text)
    good = [isinstance(p, str) or (isinstance(p, Tensor) and p.ndim == 1) for p in prompts]
    if not prompts or not all(good):
        raise ValueError("give a text, a list of texts, or token ids [pos] or [batch, pos]")
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt is empty: there is no position to read at")
    return prompts


def tokenize(host: AbstractHost, prompts: Sequence[Prompt]) -> list[Int[Tensor, " pos"]]:
    """Token ids of every prompt."""
    return [host.to_tokens(p) if isinstance(p, str) else p.detach().cpu() for p in prompts]


def read_sites(
    host: AbstractHost,
    prompts: Sequence[Int[Tensor, " pos"]],
    readouts: Sequence[Readout],
    hooks: Sequence[str],
) -> Reading:
    """Run the prompts with each maximal prefix appended and gather what the readouts read.

    Rows are padded on the right, which a causal model does not see.

    Raises:
        ValueError: a prompt that is longer than the context.
    """
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
        values={hook: torch.stack(found, 1).double() for hook, found in values.items()},
        logits=torch.stack(logits, 1).double(),
        positions=torch.stack(positions, 1),
    )


def final_hooks(host: AbstractHost) -> list[str]:
    """What `denominators` and `target_values` need."""
    scale = host.final_scale_site()
    return [host.final_input_site(), *([scale] if scale else [])]


def denominators(host: AbstractHost, reading: Reading) -> Float[Tensor, "batch site"]:
    """rho, the final norm's denominator where each readout reads; ones without a norm."""
    scale = host.final_scale_site()
    if scale is None:
        return torch.ones_like(reading.logits[..., 0])
    return reading.values[scale][..., 0]


def target_values(
    host: AbstractHost, readouts: Sequence[Readout], reading: Reading
) -> Float[Tensor, "batch site"]:
    """The model's own value of each readout: from its logits, or from ln_final's output."""
    values = []
    for site, readout in enumerate(readouts):
        if readout.weights:
            logits = reading.logits[:, site]
            parts = [weight * logits[:, token] for token, weight in readout.weights.items()]
            values.append(torch.stack(parts).sum(0))
        else:
            normalised = reading.values[host.final_input_site()][:, site]
            u = host.fold_readout(readout.direction)
            values.append(normalised @ u + host.readout_offset(readout.direction))
    return torch.stack(values, 1)


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
    if longest > host.n_ctx:
        raise ValueError(
            f"a prompt of {longest} tokens (target included) does not fit the model's context "
            f"of {host.n_ctx}: shorten it"
        )
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return host.read(tokens, hooks)
