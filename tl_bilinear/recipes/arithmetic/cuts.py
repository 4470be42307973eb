"""Ways to cut an operation out without training: each an order of modes or units to take out.

Every way is a list of edits of growing size. All of them see the same: activations of the pairs
that the model knows, and the gradients of those pairs' margins.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.decompositions import eigendecompose
from tl_bilinear.recipes.arithmetic.edit import Edit, Modes, Problem, margin_gradients
from tl_bilinear.unlearning import ContrastiveDirections, contrastive_directions, second_moment
from tl_bilinear.unlearning.contrast import SHRINKAGE

LARGEST = 0.10  # forget accuracy at which an operation counts as forgotten
SHRINKAGES = (1e-3, 1e-2, 0.1, 1.0)  # little favours pure directions, much strong ones
N_GRADIENTS = 8  # directions of the stream whose eigenmodes are looked at, per layer


@dataclass(frozen=True)
class Place:
    """A layer, and what its MLP reads ("inputs") or writes ("outputs")."""

    layer: int
    side: str

    def __str__(self) -> str:
        return f"{self.side[:-1]} of layer {self.layer}"


@dataclass(frozen=True, eq=False)
class Evidence:
    """Activations and margin gradients of known pairs, by operation, at every place."""

    problem: Problem
    activations: dict[Place, list[Float[Tensor, "_ d"]]]
    gradients: dict[Place, list[Float[Tensor, "_ d"]]]
    hidden: list[list[Float[Tensor, "_ d_mlp"]]]
    """By layer and operation."""

    @classmethod
    def of(cls, problem: Problem) -> "Evidence":
        done, _, gradients = margin_gradients(problem.model, problem.task)
        operations = range(len(problem.known))
        places = [Place(i, side) for i in range(len(done.inputs)) for side in gradients]
        activations = {
            place: [
                done.of_task(getattr(done, place.side)[place.layer], op)[problem.known[op]].detach()
                for op in operations
            ]
            for place in places
        }
        rows = {
            place: [gradients[place.side][place.layer][op][problem.known[op]] for op in operations]
            for place in places
        }
        hidden = [
            [done.of_task(each, op)[problem.known[op]].detach() for op in operations]
            for each in done.hidden
        ]
        return cls(problem, activations, rows, hidden)

    def whitening(self, place: Place) -> Float[Tensor, "d d"]:
        """The second moment of both operations' activations."""
        return second_moment(torch.cat(self.activations[place]))

    @property
    def outputs(self) -> list[Place]:
        return [place for place in self.activations if place.side == "outputs"]


def contrasts(
    evidence: Evidence, place: Place, moments: str, shrinkage: float = SHRINKAGE
) -> ContrastiveDirections:
    """All directions of a place: "activations" or "gradients" of both operations, or "svd"."""
    forget, retain = evidence.problem.forget, evidence.problem.retain
    rows = evidence.activations if moments == "activations" else evidence.gradients
    f, r = second_moment(rows[place][forget]), second_moment(rows[place][retain])
    return contrastive_directions(
        f,
        torch.zeros_like(r) if moments == "svd" else r,
        len(f),
        moments="activations" if moments == "activations" else "gradients",
        whiten=evidence.whitening(place),
        shrinkage=shrinkage,
    )


def projections(
    place: Place, directions: ContrastiveDirections, strength: float = 1.0
) -> Iterator[Edit]:
    """The first one taken out, the first two, ...; reversed with a strength of 2."""
    for k in range(1, directions.k + 1):
        some = {place.layer: directions.truncate(k)}
        if place.side == "inputs":
            yield Edit(k, inputs=some)
        else:
            yield Edit(k, outputs=some, strength=strength)


def mean_inputs(problem: Problem) -> Edit:
    """In what every layer's MLP reads, the amplitude that tells the operations apart is set to its
    mean under the retained one.

    One direction a layer: what is written is the difference of the mean inputs, and what reads it
    is the linear discriminant, which sees as little of the pairs as can be. Layer by layer, each in
    the model with the earlier ones edited. With a task token the forgotten operation's is then
    heard as the retained one's; nothing of what computes either is touched.
    """
    edit = Edit()
    for layer in range(problem.model.config.n_layers):
        done = problem.run(edit)
        forget, retain = (
            done.of_task(done.inputs[layer], op)[problem.known[op]].double()
            for op in (problem.forget, problem.retain)
        )
        means = forget.mean(0), retain.mean(0)
        difference = means[0] - means[1]
        within = second_moment(torch.cat([forget - means[0], retain - means[1]]))
        within += SHRINKAGE * within.trace() / len(within) * torch.eye(len(within)).to(within)
        reader = torch.linalg.solve(within, difference)
        directions = ContrastiveDirections(
            readers=(reader / (reader @ difference))[None],
            writers=difference[None],
            shares=torch.ones(1, dtype=torch.float64),
            overlap=0.0,
            shrinkage=SHRINKAGE,
            moments="activations",
        )
        edit = Edit(
            size=edit.size + 1,
            inputs=edit.inputs | {layer: directions},
            centres=edit.centres | {layer: means[1].to(done.logits)},
        )
    return edit


def random_directions(
    evidence: Evidence, place: Place, generator: torch.Generator
) -> ContrastiveDirections:
    """Random orthonormal directions of the whitened space: each of the same size in activations."""
    values, vectors = torch.linalg.eigh(evidence.whitening(place))
    roots = (values + SHRINKAGE * values.mean()).sqrt()
    draw = torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)
    rows = torch.linalg.qr(draw).Q @ vectors.T
    readers, writers = ((rows @ vectors * each) @ vectors.T for each in (1 / roots, roots))
    nothing = torch.zeros(len(values), dtype=torch.float64)
    return ContrastiveDirections(readers, writers, nothing, 0.0, SHRINKAGE, "activations")


def unit_cuts(evidence: Evidence, order: Tensor | None = None) -> Iterator[Edit]:
    """Hidden units of all layers set to 0, by their forget share of squared margin contributions.

    A unit's contribution is its activation times the margin's gradient along what it writes.
    """
    if order is None:
        order = _by_share(*_unit_energies(evidence))
    widths = [each[0].shape[1] for each in evidence.hidden]
    for size in _sizes(len(order)):
        mask = torch.zeros(len(order), dtype=torch.bool)
        mask[order[:size]] = True
        yield Edit(size, units=dict(enumerate(mask.split(widths))))


def eigenmode_cuts(evidence: Evidence, flip: bool = False) -> Iterator[Edit]:
    """Eigenmodes of every layer's Q(u), by their forget share of squared margin contributions.

    Directions u are the forgotten operation's unembedding (two heads), or the first principal
    directions of its margins' gradients (token). A mode writes along its own direction, u / |u|^2:
    the joint removal for oblique directions (DESIGN.md 2.8) writes along their dual basis, which
    for 31 unembedding columns in 32 dimensions is far from all of them.

    Args:
        flip: reverse the modes instead of removing them.
    """
    problem, found = evidence.problem, []
    for place in evidence.outputs:
        x = evidence.activations[Place(place.layer, "inputs")]
        modes = _modes(evidence, place)
        energies = [
            (modes.contributions(x[op]) * (evidence.gradients[place][op] @ modes.writes.T))
            .square()
            .mean(0)
            for op in (problem.forget, problem.retain)
        ]
        found.append((modes, energies))
    forget, retain = (torch.cat([energies[i] for _, energies in found]) for i in (0, 1))
    order = _by_share(forget, retain)
    counts = [len(modes.values) for modes, _ in found]
    for size in _sizes(len(order)):
        mask = torch.zeros(len(order), dtype=torch.bool)
        mask[order[:size]] = True
        parts = [part.nonzero()[:, 0] for part in mask.split(counts)]
        chosen = [modes.chosen(part) for (modes, _), part in zip(found, parts, strict=True)]
        if flip:
            chosen = [Modes(each.vectors, 2 * each.values, each.writes) for each in chosen]
        yield Edit(size, modes={p.layer: c for p, c in zip(evidence.outputs, chosen, strict=True)})


def _modes(evidence: Evidence, place: Place) -> Modes:
    problem = evidence.problem
    if problem.model.config.form == "heads":
        columns = problem.model.unembedding(problem.forget).detach().T
        u = columns - columns.mean(0)
    else:
        moment = second_moment(evidence.gradients[place][problem.forget])
        u = torch.linalg.eigh(moment).eigenvectors.flip(1)[:, :N_GRADIENTS].T.float()
    found = eigendecompose(problem.model.mlp_tensor(place.layer), u)
    writes = u / u.square().sum(1, keepdim=True)
    count = found.eigenvalues.shape[-1]
    return Modes(
        found.eigenvectors.flatten(0, 1).float(),
        found.eigenvalues.flatten().float(),
        writes.repeat_interleave(count, 0),
    )


def _unit_energies(evidence: Evidence) -> list[Tensor]:
    problem, energies = evidence.problem, []
    for op in (problem.forget, problem.retain):
        layers = []
        for place in evidence.outputs:
            W_out = problem.model.get_parameter(f"mlps.{place.layer}.W_out").detach()
            effects = evidence.hidden[place.layer][op] * (evidence.gradients[place][op] @ W_out.T)
            layers.append(effects.square().mean(0))
        energies.append(torch.cat(layers))
    return energies


def _by_share(forget: Tensor, retain: Tensor) -> Tensor:
    """Indices by falling forget share; those that do nothing, by a thousandth of the mean, last."""
    total = forget + retain
    return (forget / (total + 1e-3 * total.mean())).argsort(descending=True)


def _sizes(most: int) -> list[int]:
    """1, 2, ..., then steps of an eighth."""
    sizes, size = [], 1
    while size < most:
        sizes.append(size)
        size += max(1, size // 8)
    return [*sizes, most]
