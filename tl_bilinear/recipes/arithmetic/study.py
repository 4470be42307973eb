"""Everything that is measured on one model, in one direction of forgetting; kept as JSON."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from tl_bilinear.optimisation.files import fingerprint_parameters, replace_file
from tl_bilinear.recipes.arithmetic.cuts import (
    SHRINKAGES,
    Evidence,
    Place,
    contrasts,
    eigenmode_cuts,
    mean_inputs,
    projections,
    random_directions,
    unit_cuts,
)
from tl_bilinear.recipes.arithmetic.edit import NOTHING, Edit, Problem
from tl_bilinear.recipes.arithmetic.models import TrainedModel
from tl_bilinear.recipes.arithmetic.outcome import Outcome, first_that_forgets, merit
from tl_bilinear.recipes.arithmetic.scaled import scaled_cuts, scaled_singly, within
from tl_bilinear.recipes.arithmetic.solver import fit_weights
from tl_bilinear.unlearning import ContrastiveDirections, held_out_examples, ridge_probe

DRAWS = 20
EDITION = 6  # of what is measured: a record of another one is measured anew

OUTPUT_SVD = "output SVD"
CONTRASTIVE = "contrastive"
CONTRASTIVE_REVERSED = "contrastive, reversed"
CONTRASTIVE_SCALED = "contrastive, scaled"
CONTRASTIVE_SINGLY = "contrastive, scaled singly"
CONTRASTIVE_INPUTS = "contrastive, inputs"
MEAN_INPUTS = "retained mean, inputs"
TOKEN_COPIED = "token copied"
UNITS = "hidden units"
EIGENMODES = "eigenmodes"
REVERSED = "eigenmodes, reversed"
RANDOM_DIRECTIONS = "random directions"
RANDOM_SCALED = "random directions, scaled"
RANDOM_SINGLY = "random directions, scaled singly"
BEST_RANDOM = "best random directions"
RANDOM_UNITS = "random units"
SOLVER = "solver"
FEW = 5  # directions that are scaled singly, at most
N_STARTS = 3  # of the best edits with one factor, from which single factors are looked for
PROBED_SHARE = 0.2  # of the pairs, on which probes are measured; they are fitted on the others
PROBED = (CONTRASTIVE, UNITS, EIGENMODES, SOLVER)


@dataclass(frozen=True)
class Matched:
    """As many random directions as the contrastive edit has, scaled to change as much (the root
    mean square over all known pairs of both operations): the means over the draws."""

    forget: float
    retain: float


@dataclass(frozen=True)
class Found:
    """One probe's accuracy and that of its shuffled-label control."""

    accuracy: float
    control: float


@dataclass(frozen=True)
class Record:
    """One model and one direction of forgetting."""

    kind: str
    seed: int
    forget: str
    retain: str
    known: dict[str, float]
    """By operation, the share of all pairs that the model knows."""
    test: dict[str, float]
    overlap: float
    """Cosine of both operations' second moments where the contrastive modes were taken out."""
    outcomes: dict[str, Outcome]
    held_out: dict[str, Outcome]
    """Of both scaled contrastive edits: directions and factors from one half of the pairs, measured
    on the other."""
    matched: Matched
    solver_fitted: Outcome
    """Of the solver, on the pairs that it was fitted on; `outcomes` has the others."""
    probes: dict[str, Found]
    """By "edit / place / degree"."""
    seconds: float = 0.0
    """By the clock, for all of this."""


def studied(trained: TrainedModel, forget: int, work_dir: Path) -> Record:
    """The record of one model and direction, from the work folder or measured and put there."""
    operation = trained.task.operations[forget]
    path = work_dir / f"study-{trained.kind.name}-{trained.seed}-{operation}.json"
    identity = {"edition": EDITION, "model": fingerprint_parameters(trained.model)}
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored.pop("identity") == identity:
            return _read(stored)
    began = time.monotonic()
    record = measure(trained, forget, draws=DRAWS)
    record = replace(record, seconds=time.monotonic() - began)
    content = json.dumps({"identity": identity} | asdict(record), indent=1)
    replace_file(path, content.encode())
    return record


def measure(trained: TrainedModel, forget: int, *, draws: int = DRAWS) -> Record:
    """Every way to cut, the controls, the solver and the probes."""
    problem = Problem.of(trained.model, trained.task, forget)
    evidence = Evidence.of(problem)
    generator = torch.Generator().manual_seed(trained.seed)
    edits = dict(_ways(evidence))
    outcomes = {name: outcome for name, (_, outcome) in edits.items()}
    contrastive, place, overlap = edits[CONTRASTIVE][0], *_place_of(evidence, edits[CONTRASTIVE])
    drawn = [random_directions(evidence, place, generator) for _ in range(draws)]
    random = [first_that_forgets(problem, projections(place, each))[1] for each in drawn]
    outcomes[RANDOM_DIRECTIONS] = _mean(random)
    outcomes[BEST_RANDOM] = max(random, key=merit)
    outcomes[RANDOM_SCALED] = _mean(
        max((outcome for _, outcome in scaled_cuts(problem, place, each)), key=merit)
        for each in drawn
    )
    n_units = sum(each[0].shape[1] for each in evidence.hidden)
    few = round(outcomes[CONTRASTIVE_SINGLY].size)
    outcomes[RANDOM_SINGLY] = _mean(
        scaled_singly(problem, Edit(few, outputs={place.layer: each.truncate(few)}))[1]
        for each in drawn
    )
    outcomes[RANDOM_UNITS] = _mean(
        first_that_forgets(
            problem, unit_cuts(evidence, torch.randperm(n_units, generator=generator))
        )[1]
        for _ in range(draws)
    )
    held_out = torch.stack([held_out_examples(trained.task.p**2, 0.5, s) for s in (0, 1)])
    chosen = scaled_contrasts(Evidence.of(within(problem, ~held_out)))
    solved = fit_weights(problem, ~held_out)
    on_fitted, on_others = (
        Outcome(**asdict(problem.accuracies(solved.edit, part)), size=solved.rank)
        for part in (~held_out, held_out)
    )
    outcomes[SOLVER] = on_others
    probed = {name: edits[name][0] for name in PROBED if name in edits} | {SOLVER: solved.edit}
    names = trained.task.operations
    return Record(
        kind=trained.kind.name,
        seed=trained.seed,
        forget=names[forget],
        retain=names[1 - forget],
        known={
            name: float(row.double().mean()) for name, row in zip(names, problem.known, strict=True)
        },
        test=trained.test,
        overlap=overlap,
        outcomes=outcomes,
        held_out={
            name: replace(outcome, **asdict(problem.accuracies(edit, held_out)))
            for name, (edit, outcome) in chosen.items()
        },
        matched=_matched(problem, contrastive, place, drawn),
        solver_fitted=on_fitted,
        probes=dict(_probes(problem, probed, held_out_examples(trained.task.p**2, PROBED_SHARE))),
    )


def _ways(evidence: Evidence) -> Iterator[tuple[str, tuple[Edit, Outcome]]]:
    problem = evidence.problem
    tokens, kinds = problem.model.config.form == "token", _moment_kinds(problem)
    yield OUTPUT_SVD, _best(evidence, evidence.outputs, ("svd",), _taken_out())
    yield CONTRASTIVE, _best(evidence, evidence.outputs, kinds, _taken_out())
    yield CONTRASTIVE_REVERSED, _best(evidence, evidence.outputs, kinds, _taken_out(2.0))
    yield from scaled_contrasts(evidence).items()
    if tokens:
        inputs = [Place(each.layer, "inputs") for each in evidence.outputs]
        yield CONTRASTIVE_INPUTS, _best(evidence, inputs, kinds, _taken_out())
        yield MEAN_INPUTS, first_that_forgets(problem, [mean_inputs(problem)])
        copied = Edit(1, tokens={problem.forget: problem.retain})
        yield TOKEN_COPIED, first_that_forgets(problem, [copied])
    yield UNITS, first_that_forgets(problem, unit_cuts(evidence))
    if problem.model.config.activation == "bilinear":
        yield EIGENMODES, first_that_forgets(problem, eigenmode_cuts(evidence))
        yield REVERSED, first_that_forgets(problem, eigenmode_cuts(evidence, flip=True))


def _moment_kinds(problem: Problem) -> tuple[str, ...]:
    """What contrastive directions are looked for in."""
    tokens = problem.model.config.form == "token"
    return ("gradients", "activations") if tokens else ("gradients",)


Tried = Callable[[Problem, Place, ContrastiveDirections], Iterable[tuple[Edit, Outcome]]]


def _taken_out(strength: float = 1.0) -> Tried:
    def tried(problem: Problem, place: Place, directions: ContrastiveDirections):
        return [first_that_forgets(problem, projections(place, directions, strength))]

    return tried


def _best(
    evidence: Evidence, places: Iterable[Place], kinds: Iterable[str], tried: Tried
) -> tuple[Edit, Outcome]:
    """Of all places, kinds of moments and shrinkages the one that forgets and retains most."""
    return max(_each(evidence, places, kinds, tried), key=lambda each: merit(each[1]))


def _each(
    evidence: Evidence, places: Iterable[Place], kinds: Iterable[str], tried: Tried
) -> Iterator[tuple[Edit, Outcome]]:
    for place, kind, shrinkage in product(places, kinds, SHRINKAGES):
        directions = contrasts(evidence, place, kind, shrinkage)
        where = f"{place}, {kind}, {shrinkage:g}"
        for edit, outcome in tried(evidence.problem, place, directions):
            yield edit, replace(outcome, where=where)


def scaled_contrasts(evidence: Evidence) -> dict[str, tuple[Edit, Outcome]]:
    """By name the best contrastive edits, scaled by one factor and, of at most `FEW` directions, by
    a factor for each: by the pairs that the evidence is of."""
    kinds = _moment_kinds(evidence.problem)
    found = list(_each(evidence, evidence.outputs, kinds, scaled_cuts))
    found.sort(key=lambda each: merit(each[1]), reverse=True)
    starts = [each for each in found if each[0].size <= FEW] or found
    singly = [
        (edit, replace(outcome, where=first.where))
        for start, first in starts[:N_STARTS]
        for edit, outcome in [scaled_singly(evidence.problem, _few(start))]
    ]
    return {
        CONTRASTIVE_SCALED: found[0],
        CONTRASTIVE_SINGLY: max(singly, key=lambda each: merit(each[1])),
    }


def _few(edit: Edit) -> Edit:
    """The first `FEW` of an edit's directions."""
    ((layer, directions),) = edit.outputs.items()
    k = min(edit.size, FEW)
    return replace(edit, size=k, outputs={layer: directions.truncate(k)})


def _place_of(evidence: Evidence, way: tuple[Edit, Outcome]) -> tuple[Place, float]:
    """Where a contrastive edit acts, and the overlap of the moments there."""
    (layer, directions), *_ = way[0].outputs.items()
    return Place(layer, "outputs"), directions.overlap


def _matched(
    problem: Problem, edit: Edit, place: Place, drawn: Sequence[ContrastiveDirections]
) -> Matched:
    layer = place.layer
    output = problem.run().outputs[layer]

    def change(directions: ContrastiveDirections) -> Tensor:
        return (directions.removed(output) - output).square().sum(-1).mean().sqrt()

    size, scores = edit.size, []
    for each in drawn:
        some = each.truncate(size)
        strength = float(change(edit.outputs[layer]) / change(some))
        scores.append(problem.accuracies(Edit(size, outputs={layer: some}, strength=strength)))
    return Matched(
        forget=sum(each.forget for each in scores) / len(scores),
        retain=sum(each.retain for each in scores) / len(scores),
    )


def _probes(
    problem: Problem, edits: dict[str, Edit], held_out: Tensor
) -> Iterator[tuple[str, Found]]:
    """What can be read of the forgotten answers, before the unembedding and in the last layer."""
    labels = problem.task.targets[problem.forget]
    seen: list[tuple[Tensor, int, Found]] = []
    for name, edit in {"none": NOTHING, **edits}.items():
        done = problem.run(edit)
        for place, values in (("output", done.final), ("hidden", done.hidden[-1])):
            features = done.of_task(values, problem.forget)
            for degree in (1, 2):
                same = [f for x, d, f in seen if d == degree and torch.equal(x, features)]
                if not same:
                    probe = ridge_probe(features, labels, held_out, degree=degree, n_controls=2)
                    same = [Found(probe.accuracy, probe.control)]
                    seen.append((features, degree, same[0]))
                yield f"{name} / {place} / {degree}", same[0]


def _mean(outcomes: Iterable[Outcome]) -> Outcome:
    every = list(outcomes)

    def mean(name: str) -> float:
        return sum(getattr(each, name) for each in every) / len(every)

    return Outcome(mean("forget"), mean("retain"), mean("retain_trained"), mean("size"))


def _read(stored: dict) -> Record:
    made = dict(stored)
    made["outcomes"] = {name: Outcome(**each) for name, each in stored["outcomes"].items()}
    made["held_out"] = {name: Outcome(**each) for name, each in stored["held_out"].items()}
    made["solver_fitted"] = Outcome(**stored["solver_fitted"])
    made["matched"] = Matched(**stored["matched"])
    made["probes"] = {name: Found(**each) for name, each in stored["probes"].items()}
    return Record(**made)
