"""Edits of a model of arithmetic, its edited forward pass, and what it then knows."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_bilinear.toys import MLP, ModularModel, ModularTask
from tl_bilinear.unlearning import ContrastiveDirections


@dataclass(frozen=True, eq=False)
class Modes:
    """Rank-1 quadratic forms of an MLP's input, each with what it writes: to be taken out."""

    vectors: Float[Tensor, "mode d"]
    values: Float[Tensor, " mode"]
    """Eigenvalues."""
    writes: Float[Tensor, "mode d"]

    def contributions(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch mode"]:
        """lambda (v . x)^2, which is written along `writes`."""
        return self.values * (x @ self.vectors.T).square()

    def chosen(self, index: Tensor) -> "Modes":
        return Modes(self.vectors[index], self.values[index], self.writes[index])


@dataclass(frozen=True, eq=False)
class Edit:
    """What is changed at each layer; empty, nothing. `size` counts modes, units or nothing."""

    size: int = 0
    inputs: dict[int, ContrastiveDirections] = field(default_factory=dict)
    """Taken out of what a layer's MLP reads; the stream beside it keeps them."""
    centres: dict[int, Float[Tensor, " d"]] = field(default_factory=dict)
    """Inputs whose amplitudes those of `inputs` are set to, where that is not 0."""
    outputs: dict[int, ContrastiveDirections] = field(default_factory=dict)
    """Taken out of what a layer's MLP writes."""
    strength: float = 1.0
    """How much of `outputs` is taken out: 1 is a projection."""
    units: dict[int, Bool[Tensor, " d_mlp"]] = field(default_factory=dict)
    """Hidden units that are set to 0."""
    modes: dict[int, Modes] = field(default_factory=dict)
    weights: dict[int, Float[Tensor, "d_mlp d"]] = field(default_factory=dict)
    """Added to W_out."""
    tokens: dict[int, int] = field(default_factory=dict)
    """Task tokens that are read as others."""

    @property
    def first(self) -> float:
        """The first layer that computes anything else; infinite where none does."""
        changed = (self.inputs, self.outputs, self.units, self.modes, self.weights)
        layers = [layer for each in changed for layer in each]
        return 0 if self.tokens else min(layers, default=math.inf)


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward pass: logits, and the inside of every layer, [task, pair, ...]; the form with
    two heads has one task there."""

    logits: Float[Tensor, "operation pair answer"]
    inputs: tuple[Float[Tensor, "task pair d"], ...]
    hidden: tuple[Float[Tensor, "task pair d_mlp"], ...]
    outputs: tuple[Float[Tensor, "task pair d"], ...]
    final: Float[Tensor, "task pair d"]
    """What the unembedding reads."""

    @property
    def layers(self) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
        """By layer its input, hidden units and output."""
        return tuple(zip(self.inputs, self.hidden, self.outputs, strict=True))

    def of_task(self, values: Tensor, operation: int) -> Tensor:
        """The rows of an operation: those of its task, or of the only one."""
        return values[operation if len(values) > 1 else 0]


NOTHING = Edit()


def run(
    model: ModularModel, task: ModularTask, edit: Edit = NOTHING, unedited: Pass | None = None
) -> Pass:
    """All pairs through the edited model.

    Args:
        unedited: the pass without an edit, of which everything before the edit is taken.
    """
    if edit.tokens:
        unedited = None
    if unedited is not None and edit.first >= len(model.mlps):
        return unedited
    start = 0 if unedited is None else int(edit.first)
    stream = _embedded(model, task, edit) if unedited is None else unedited.inputs[start]
    layers = [] if unedited is None else list(unedited.layers[:start])
    for layer in range(start, len(model.mlps)):
        before = unedited if layer == start else None
        layers.append(_run_layer(model, edit, layer, stream, before))
        output = layers[-1][-1]
        stream = stream + output if model.config.form == "token" else output
    inputs, hidden, outputs = zip(*layers, strict=True)
    return Pass(model.unembed(stream), inputs, hidden, outputs, stream)


def _embedded(model: ModularModel, task: ModularTask, edit: Edit) -> Tensor:
    stream = model.embed(task.pairs)
    for one, other in edit.tokens.items():
        stream = stream.index_copy(0, torch.tensor([one]), stream[other : other + 1])
    return stream


def _run_layer(
    model: ModularModel, edit: Edit, layer: int, stream: Tensor, unedited: Pass | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What an edited layer reads, its hidden units and its output.

    Args:
        unedited: a pass in which the layer has met the same stream.
    """
    mlp = model.mlps[layer]
    assert isinstance(mlp, MLP)
    x = stream
    if layer in edit.inputs:
        centre = edit.centres.get(layer, torch.zeros_like(stream[0, 0]))
        x = centre + edit.inputs[layer].removed(stream - centre)
        unedited = None
    hidden = mlp.hidden(x) if unedited is None else unedited.hidden[layer]
    if layer in edit.units:
        hidden = hidden * ~edit.units[layer]
        unedited = None
    output = hidden @ mlp.W_out if unedited is None else unedited.outputs[layer]
    if layer in edit.weights:
        output = output + hidden @ edit.weights[layer].to(hidden)
    if layer in edit.modes:
        modes = edit.modes[layer]
        output = output - modes.contributions(x) @ modes.writes
    if layer in edit.outputs:
        output = output + edit.strength * (edit.outputs[layer].removed(output) - output)
    return x, hidden, output


def margins(
    logits: Float[Tensor, "operation pair answer"], task: ModularTask
) -> Float[Tensor, "operation pair"]:
    """The right answer's logit less the largest other."""
    right = logits.gather(-1, task.targets[..., None])[..., 0]
    others = logits.scatter(-1, task.targets[..., None], float("-inf"))
    return right - others.amax(-1)


def margin_gradients(
    model: ModularModel, task: ModularTask, edit: Edit = NOTHING
) -> tuple[Pass, Float[Tensor, "operation pair"], dict[str, list[Tensor]]]:
    """The pass, its margins, and their gradients by every layer's input and output.

    Gradients are lists over layers of [operation, pair, d], under "inputs" and "outputs".
    """
    with torch.enable_grad():
        done = run(model, task, edit)
        values = margins(done.logits, task)
        wanted = [*done.inputs, *done.outputs]
        found = [
            torch.autograd.grad(row.sum(), wanted, retain_graph=True, allow_unused=True)
            for row in values
        ]
    layers = len(done.inputs)
    rows = [
        torch.stack([done.of_task(each[i], op) for op, each in enumerate(found)])
        for i in range(2 * layers)
    ]
    return done, values.detach(), {"inputs": rows[:layers], "outputs": rows[layers:]}


@dataclass(frozen=True)
class Accuracies:
    """Of the pairs that the unedited model answers rightly, the share that it still does."""

    forget: float
    retain: float
    retain_trained: float
    """Among training pairs alone, which lie further from the decision than the others."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A model, which operation it is to forget, and what it knows before."""

    model: ModularModel
    task: ModularTask
    forget: int
    known: Bool[Tensor, "operation pair"]
    unedited: Pass

    @classmethod
    def of(cls, model: ModularModel, task: ModularTask, forget: int) -> "Problem":
        with torch.no_grad():
            unedited = run(model, task)
        known = unedited.logits.argmax(-1) == task.targets
        return cls(model, task, forget, known, unedited)

    @property
    def retain(self) -> int:
        return 1 - self.forget

    def run(self, edit: Edit = NOTHING) -> Pass:
        with torch.no_grad():
            return run(self.model, self.task, edit, self.unedited)

    def accuracies(
        self, edit: Edit, among: Bool[Tensor, "operation pair"] | None = None
    ) -> Accuracies:
        """What is known of both operations, among all known pairs or some of them."""
        right = self.run(edit).logits.argmax(-1) == self.task.targets
        chosen = self.known if among is None else self.known & among
        parts = (
            (self.forget, chosen),
            (self.retain, chosen),
            (self.retain, chosen & self.task.trained),
        )
        shares = (float(right[op][part[op]].double().mean()) for op, part in parts)
        return Accuracies(*shares)
