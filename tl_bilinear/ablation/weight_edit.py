"""Writing an edit into a model, and the record of it: foreseen beforehand, measured behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.ablation.layer_edit import Texts
from tl_bilinear.ablation.ledger import Ledger, restore_
from tl_bilinear.ablation.refit import left_over, smallest_distance
from tl_bilinear.decompositions import InputMode, Mode, OutputMode
from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.corpus import as_texts, row_batches
from tl_bilinear.hosts.prompts import split_prompts, tokenize
from tl_bilinear.hosts.provenance import Provenance, provenance
from tl_bilinear.hosts.reading import Reading, read_ends, target_values
from tl_bilinear.hosts.resizing import set_mlps_
from tl_bilinear.hosts.target import Readout, Target, make_readouts
from tl_bilinear.hosts.writing import mlp_writing, writing_hooks
from tl_bilinear.quadratic_map import QuadraticMap

AnyMode = Mode | OutputMode | InputMode
PROBES = 64
NOTHING = 1e-12
"""Of an MLP's output: what an edit changes below it is rounding in float64."""
INCOMPLETE = 0.1
"""Share of an edit, along itself, that a refit may leave over and still be called removal."""


@dataclass(frozen=True, eq=False)
class Change:
    """New weights of some layers; maps of the MLPs' own inputs, in float64."""

    how: Literal["neurons", "refit", "output projection", "input projection"]
    kind: Literal["masking", "removal"]
    wanted: Mapping[int, QuadraticMap]
    """The exact edit."""
    written: Mapping[int, QuadraticMap]
    """What goes into the model."""


@dataclass(frozen=True)
class LayerChange:
    """One edited layer."""

    layer: int
    added_neurons: int
    """Neurons that the edit needs beyond the layer's own; zero neurons are not counted."""
    removed: float
    """Root-mean-square length of what is removed from the MLP's output, over that of the output."""
    error: float
    """Root-mean-square difference from the exact edit, as stored, over that of what is removed."""
    left_over: float
    """The part of the edit, along itself, that was not made: 0 but for a refit's error."""
    smallest_distance: float | None
    """Of any new neuron to any original one, as products of norm one: 0 is an original neuron,
    sqrt(2) orthogonal. None where original neurons are kept."""


@dataclass(frozen=True, eq=False)
class TargetChange:
    """What an edit does to a target on a prompt, in logits summed over the target's sites."""

    sites: tuple[str, ...]
    before: float
    after: float
    direct: float
    """Foreseen: the exact edit's change of each edited MLP's output at the sites, carried to the
    target with the norms and all that the layers read frozen."""

    @property
    def change(self) -> float:
        """The real one."""
        return self.after - self.before


@dataclass(frozen=True, eq=False)
class WeightEdit:
    """An edit that was written into a model's weights."""

    how: str
    kind: Literal["masking", "removal"]
    """Masking can be undone from the model's own files; removal cannot."""
    modes: tuple[AnyMode, ...]
    layers: tuple[LayerChange, ...]
    d_mlp: tuple[int, int]
    """Width of every layer before and after."""
    target: TargetChange | None
    """None where no prompt was given."""
    kl: float | None
    """KL(before || after) in nats per token over the texts, first tokens left out."""
    tokens: int
    """Tokens that `kl` is a mean over."""
    ledger: Ledger
    """Undoes the edit (`undo_`). In memory until it is saved, to a place of its own."""
    before: Provenance
    after: Provenance

    @property
    def left_over(self) -> float:
        """The largest of any layer: what the edit was to change and did not."""
        return max(part.left_over for part in self.layers)

    def __str__(self) -> str:
        layers = ", ".join(str(part.layer) for part in self.layers)
        error = max(part.error for part in self.layers)
        text = f"{self.how} ({self.kind}) of {len(self.modes)} modes in layers {layers}: "
        text += f"d_mlp {self.d_mlp[0]} to {self.d_mlp[1]}, largest error {error:.1e} of the edit"
        distances = [p.smallest_distance for p in self.layers if p.smallest_distance is not None]
        if distances:
            text += f", no neuron nearer than {min(distances):.1e} to an original one"
        if self.left_over > 0:
            text += f", {self.left_over:.1e} of it left over"
        if self.target is not None:
            text += (
                f"; target {self.target.before:+.3f} to {self.target.after:+.3f} "
                f"(foreseen directly {self.target.direct:+.3f})"
            )
        return text if self.kl is None else f"{text}; KL {self.kl:.2e} nats per token"


@torch.no_grad()
def write_(
    model: Any,
    change: Change,
    modes: tuple[AnyMode, ...],
    texts: Texts | None,
    prompt: str | Tensor | None,
    target: Target | None,
) -> WeightEdit:
    """Put a change into a model and measure it; after any error the model is as it was.

    Raises:
        ValueError: a prompt without a target or the reverse, or several prompts.
    """
    host = get_host(model)
    texts = None if texts is None else as_texts(texts)
    if (prompt is None) != (target is None):
        raise ValueError("`prompt` and `target` belong together: give both or neither")
    readouts, tokens = None, []
    if prompt is not None and target is not None:
        prompts = split_prompts(prompt)
        if len(prompts) != 1:
            raise ValueError(f"one prompt is needed, got {len(prompts)}")
        readouts, tokens = make_readouts(host, target, prompts), tokenize(host, prompts)
    first = None if readouts is None else _read(host, change, tokens, readouts)
    logits = None if texts is None else _log_probabilities(host, texts)
    streams = _probes(host)
    before, d_mlp = provenance(host, (), "none"), host.d_mlp
    old = {layer: host.mlp_weights(layer).to(host.dtype, copy=True) for layer in change.wanted}
    direct = 0.0 if first is None else _direct(host, change, old, first)
    try:
        set_mlps_(host, change.written)
        layers = tuple(
            _layer_change(host, layer, change, old[layer], streams) for layer in change.wanted
        )
        found = None
        if first is not None and readouts is not None:
            after = _read(host, change, tokens, readouts)
            ends = [float(target_values(host, each).sum()) for each in (first, after)]
            found = TargetChange(first.labels(), ends[0], ends[1], direct)
        kl, count = None, 0
        if logits is not None and texts is not None:
            kl, count = _kl(logits, _log_probabilities(host, texts))
        now = provenance(host, (), "none")
    except BaseException:
        restore_(host, old, d_mlp)
        raise
    kind = change.kind
    if any(layer.left_over > INCOMPLETE for layer in layers):
        kind = "masking"  # what was to go is still there in part
    ledger = Ledger(change.how, before.fingerprint, now.fingerprint, d_mlp, old)
    widths = (d_mlp, host.d_mlp)
    return WeightEdit(
        change.how, kind, modes, layers, widths, found, kl, count, ledger, before, now
    )


def _read(
    host: AbstractHost, change: Change, tokens: Sequence[Tensor], readouts: Sequence[Readout]
) -> Reading:
    hooks = [host.mlp_input_site(layer) for layer in change.wanted]
    hooks += [hook for layer in change.wanted for hook in writing_hooks(host, layer)]
    return read_ends(host, tokens, readouts, hooks)


def _direct(
    host: AbstractHost, change: Change, old: Mapping[int, QuadraticMap], reading: Reading
) -> float:
    total = 0.0
    for layer, wanted in change.wanted.items():
        x = reading.values[host.mlp_input_site(layer)][0]
        moved = _value(host, layer, wanted, x) - _value(host, layer, old[layer], x)
        writing = mlp_writing(host, reading, layer)
        total += float(((writing.direction * moved).sum(-1) / writing.scale[0]).sum())
    return total


def _layer_change(
    host: AbstractHost, layer: int, change: Change, old: QuadraticMap, x: Tensor
) -> LayerChange:
    maps = (old, change.wanted[layer], host.mlp_weights(layer))
    before, exact, now = (_value(host, layer, weights, x) for weights in maps)
    removed, error, size = (float(v.norm()) for v in (exact - before, now - exact, before))
    refitted = change.how == "refit"
    if removed <= NOTHING * size:
        removed = 0.0
    # Where there was nothing to change, an error is one of the output.
    whole = removed or size or 1.0
    folded = [_folded(host, layer, weights) for weights in maps]
    return LayerChange(
        layer=layer,
        added_neurons=change.written[layer].tensor.rank - old.tensor.rank,
        removed=removed / max(size, 1e-300),
        error=error / whole,
        left_over=left_over(*folded) if refitted and removed else 0.0,
        smallest_distance=smallest_distance(host.mlp_weights(layer), old) if refitted else None,
    )


def _value(
    host: AbstractHost, layer: int, weights: QuadraticMap, x: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """What the MLP writes with these weights, its gate's activation included."""
    folded = _folded(host, layer, weights)
    activation = host.gate_activation(layer) if host.is_gated(layer) else None
    if activation is None:
        return folded(x)
    tensor, x = folded.tensor, x.to(torch.float64)
    gate = activation(x @ tensor.left + folded.left_bias)
    behind = weights.right_bias.double() if host.adds_bias_behind(layer) else 0.0
    hidden = gate * (x @ tensor.right + folded.right_bias - behind) + behind
    return hidden @ tensor.out.mT + folded.out_bias


def _folded(host: AbstractHost, layer: int, weights: QuadraticMap) -> QuadraticMap:
    norm = host.mlp_norm(layer)
    return weights.to(torch.float64).fold_input_norm(
        None if norm.gain is None else norm.gain.double(),
        None if norm.bias is None else norm.bias.double(),
        norm.centred,
    )


def _probes(host: AbstractHost) -> Float[Tensor, "probe d_model"]:
    """What a norm may give, at random; the same every time."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(PROBES, host.d_model, generator=generator, dtype=torch.float64)
    return host.mlp_norm(0).normalize(x).to(host.device)


def _log_probabilities(host: AbstractHost, texts: Texts) -> list[Float[Tensor, "token d_vocab"]]:
    """Of every text's tokens but its first, a few texts at a time."""
    found = []
    for rows in row_batches(host, texts):
        tokens = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        logits, _ = host.read(tokens, ())
        found += [
            row[1 : len(kept)].float().log_softmax(-1).cpu()
            for row, kept in zip(logits, rows, strict=True)
        ]
    return found


def _kl(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[float, int]:
    total, tokens = 0.0, 0
    for first, second in zip(before, after, strict=True):
        total += float((first.exp() * (first - second)).sum(dtype=torch.float64))
        tokens += len(first)
    if not tokens:
        raise ValueError("the texts hold no token behind their first one")
    return total / tokens, tokens
