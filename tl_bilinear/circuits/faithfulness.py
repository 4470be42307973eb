"""Does a circuit do on other prompts what it did where it was found? Mean ablation, both ways.

Elements of MLPs that circuits hold are parts y_i(x) of a layer's output (`circuits.parts`). At
every position but the first (BOS, whose stream is unlike any other),

    only the circuit      y becomes mean(y) + sum_i (y_i(x) - mean(y_i))
    without the circuit   y becomes y - sum_i (y_i(x) - mean(y_i))
    nothing               y becomes mean(y)

in all layers at once; attention runs on what then stands in the stream. Means are over a text.
Each control draws as many other parts per layer and scales them to the root-mean-square size that
the circuit's have over that text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.circuits.bases import Basis, choose_basis
from tl_bilinear.circuits.dataset import per_prompt
from tl_bilinear.circuits.parts import AbstractParts
from tl_bilinear.circuits.recurring import RecurringMode
from tl_bilinear.circuits.trace import Prompt
from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.corpus import hook_batches
from tl_bilinear.hosts.prompts import require_in_context, split_prompts, tokenize
from tl_bilinear.hosts.reading import Reading, target_values
from tl_bilinear.hosts.target import Readout, Target, make_readouts

Way = Literal["only", "without"]


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Target values in logits, per prompt."""

    parts: int
    """How many elements the circuit holds, over all layers."""
    full: tuple[float, ...]
    """The model as it is."""
    nothing: tuple[float, ...]
    """Every MLP at its mean."""
    only: tuple[float, ...]
    without: tuple[float, ...]
    only_controls: tuple[tuple[float, ...], ...]
    """Per draw and prompt."""
    without_controls: tuple[tuple[float, ...], ...]
    tokens: int
    """That means and sizes were taken over."""
    seed: int

    @property
    def recovered(self) -> float:
        """The part of the MLPs' effect that the circuit alone brings back: 1 is all of it."""
        return self._part(self.only)

    @property
    def lost(self) -> float:
        """The part of the MLPs' effect that goes with the circuit: 1 is all of it."""
        return 1 - self._part(self.without)

    @property
    def recovered_by_controls(self) -> tuple[float, ...]:
        """`recovered` of each draw."""
        return tuple(self._part(values) for values in self.only_controls)

    @property
    def lost_with_controls(self) -> tuple[float, ...]:
        """`lost` of each draw."""
        return tuple(1 - self._part(values) for values in self.without_controls)

    def _part(self, values: Sequence[float]) -> float:
        """1 - the distance to the model, over that of nothing at all; summed over prompts."""
        away = sum(abs(f - v) for f, v in zip(self.full, values, strict=True))
        whole = sum(abs(f - n) for f, n in zip(self.full, self.nothing, strict=True))
        return 1 - away / whole if whole else float("nan")


@torch.no_grad()
def measure_faithfulness(
    model: Any,
    modes: Sequence[RecurringMode],
    prompts: Sequence[Prompt],
    targets: Target | Sequence[Target],
    texts: Sequence[str],
    *,
    basis: Basis = "eigenmodes",
    draws: int = 20,
    seed: int = 0,
) -> Faithfulness:
    """Mean-ablate everything but some modes, and those modes alone, on prompts.

    Args:
        modes: what the circuit holds: `CircuitSet.modes` or some of them.
        prompts: such as the circuits were not chosen on.
        targets: one for all prompts, or a list of one per prompt.
        texts: what means and sizes are taken over.
        basis: that of the circuits.

    Cost: 3 + 2 `draws` forward passes of all prompts, one of the texts.

    Raises:
        ValueError: no modes, prompts, texts or draws; a gated model, whose modes belong to their
            tokens; as `trace_circuit`.
    """
    host = get_host(model)
    _check(host, modes, prompts, draws)
    rows = _rows(host, prompts, per_prompt(targets, len(prompts)))
    chosen, streams, means = choose_basis(host, basis), *_streams(host, texts)
    circuit = _circuit_parts(host, chosen, modes)
    generator = torch.Generator().manual_seed(seed)
    alone = {layer: _Edit(parts, streams[layer], None) for layer, parts in circuit.items()}
    only, without, only_controls, without_controls = [], [], [], []
    for draw in range(draws + 1):
        edits = alone
        if draw:
            edits = {
                layer: _Edit(parts.drawn(generator), streams[layer], parts)
                for layer, parts in circuit.items()
            }
        kept, gone = (only, without) if not draw else (only_controls, without_controls)
        kept.append(_run(host, rows, _hooks(host, edits, means, "only")))
        gone.append(_run(host, rows, _hooks(host, edits, means, "without")))
    return Faithfulness(
        parts=len(modes),
        full=_run(host, rows, []),
        nothing=_run(host, rows, _hooks(host, {}, means, "only")),
        only=only[0],
        without=without[0],
        only_controls=tuple(only_controls),
        without_controls=tuple(without_controls),
        tokens=len(streams[0]),
        seed=seed,
    )


class _Edit:
    """The deviation of some parts from their mean, matched to the sizes of others."""

    def __init__(self, parts: AbstractParts, x: Tensor, matched: AbstractParts | None):
        self.parts = parts
        sizes = parts.rms(x)
        self.weights = torch.ones_like(sizes)
        if matched is not None:
            self.weights = matched.rms(x) / sizes.clamp_min(1e-30)
        self.mean = self._sum(x).mean(0)

    def _sum(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        return torch.einsum("tpd,p->td", self.parts.outputs(x), self.weights)

    def __call__(self, x: Float[Tensor, "batch pos d_model"]) -> Tensor:
        flat = x.double().flatten(0, 1)
        return (self._sum(flat) - self.mean).unflatten(0, x.shape[:2])


@dataclass(frozen=True, eq=False)
class _Row:
    """One run of tokens, and what is read of it for which prompt."""

    tokens: Tensor
    readout: Readout
    prompt: int


def _rows(host: AbstractHost, prompts: Sequence[Prompt], targets: Sequence[Target]) -> list[_Row]:
    found = []
    for number, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        single = split_prompts(prompt)
        tokens = tokenize(host, single)[0]
        for readout in make_readouts(host, target, single):
            row = torch.cat([tokens, torch.tensor(readout.prefix, dtype=tokens.dtype)])
            require_in_context(host, len(row), f"prompt {number}")
            found.append(_Row(row, readout, number))
    return found


def _run(
    host: AbstractHost, rows: Sequence[_Row], hooks: list[tuple[str, Callable]]
) -> tuple[float, ...]:
    """Each prompt's target, with hooks attached. Rows are padded on the right."""
    tokens = torch.nn.utils.rnn.pad_sequence([row.tokens for row in rows], batch_first=True)
    scale = host.final_scale_site()
    sites = [host.final_input_site(), *([scale] if scale else [])]
    with host.hooks(hooks):
        logits, cache = host.read(tokens, sites)
    ends = torch.tensor([len(row.tokens) - 1 for row in rows])
    every = torch.arange(len(rows))
    reading = Reading(
        readouts=tuple(row.readout for row in rows),
        values={site: cache[site][every, ends].double()[None] for site in sites},
        logits=logits[every, ends].double()[None],
        positions=ends[None],
    )
    totals = [0.0] * (1 + max(row.prompt for row in rows))
    for row, value in zip(rows, target_values(host, reading)[0].tolist(), strict=True):
        totals[row.prompt] += value
    return tuple(totals)


def _hooks(
    host: AbstractHost, edits: dict[int, _Edit], means: dict[int, Tensor], way: Way
) -> list[tuple[str, Callable]]:
    hooks = []
    for layer in range(host.n_layers):
        if way == "without" and layer not in edits:
            continue
        hooks += _layer_hooks(host, layer, edits.get(layer), means[layer], way)
    return hooks


def _layer_hooks(
    host: AbstractHost, layer: int, edit: _Edit | None, mean: Tensor, way: Way
) -> list[tuple[str, Callable]]:
    stream: list[Tensor] = []

    def keep_input(value: Tensor, hook: Any) -> None:
        stream[:] = [value]

    def write(value: Tensor, hook: Any) -> Tensor:
        x = stream.pop()
        part = torch.zeros_like(x, dtype=torch.float64) if edit is None else edit(x)
        new = (mean + part) if way == "only" else (value.double() - part)
        new = new.to(value)
        return torch.cat([value[:, :1], new[:, 1:]], dim=1)

    return [(host.mlp_input_site(layer), keep_input), (host.mlp_out_site(layer), write)]


def _circuit_parts(
    host: AbstractHost, basis: Any, modes: Sequence[RecurringMode]
) -> dict[int, AbstractParts]:
    found = {}
    for layer in sorted({mode.layer for mode in modes}):
        own = [mode for mode in modes if mode.layer == layer]
        tensor = host.mlp_tensor(layer).to(torch.float64)
        index = tuple(dict.fromkeys(mode.index for mode in own))
        known = [mode.mode for mode in own if mode.mode is not None]
        found[layer] = basis.parts(tensor, layer, index, known)
    return found


def _streams(
    host: AbstractHost, texts: Sequence[str]
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """What every MLP reads over texts, and the mean of what it gives."""
    layers = range(host.n_layers)
    inputs = {layer: host.mlp_input_site(layer) for layer in layers}
    outputs = {layer: host.mlp_out_site(layer) for layer in layers}
    batches = list(hook_batches(host, texts, [*inputs.values(), *outputs.values()]))
    if not sum(len(batch[inputs[0]]) for batch in batches):
        raise ValueError("the texts hold no token behind their first one")
    streams = {i: torch.cat([batch[inputs[i]] for batch in batches]) for i in layers}
    means = {i: torch.cat([batch[outputs[i]] for batch in batches]).mean(0) for i in layers}
    return streams, means


def _check(
    host: AbstractHost, modes: Sequence[RecurringMode], prompts: Sequence[Prompt], draws: int
) -> None:
    if not modes or not prompts or draws < 1:
        raise ValueError(
            f"give at least one mode, one prompt and one draw, got {len(modes)}, {len(prompts)} "
            f"and {draws}"
        )
    if any(host.is_gated(layer) for layer in range(host.n_layers)):
        raise ValueError(
            "modes of a gated model belong to their tokens and cannot be ablated on other "
            "prompts: convert the model first (tl_bilinear.bilinearize)"
        )
