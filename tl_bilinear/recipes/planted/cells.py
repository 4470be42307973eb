"""One method on one experiment, measured once and kept: a killed run computes only what is missing.

A cell's file is named by all that decides it but the code: delete the file to compute it again.
"""

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tl_bilinear.hosts import get_host
from tl_bilinear.optimisation.files import fingerprint_settings, replace_file
from tl_bilinear.recipes.planted.concept import CONCEPT as WORD
from tl_bilinear.recipes.planted.experiments import Experiment
from tl_bilinear.recipes.planted.naming import ConceptScores, score_concept
from tl_bilinear.recipes.planted.plans import Plan
from tl_bilinear.unlearning.measure import Measures, ModelScores, measure_model
from tl_bilinear.unlearning.methods import Problem
from tl_bilinear.unlearning.over_forgetting import over_forgetting
from tl_bilinear.unlearning.plain_data import from_plain, to_plain
from tl_bilinear.unlearning.relearning import Lesson, RelearningConfig, lessons_for
from tl_bilinear.unlearning.tuning import Trial, described, run_trial

RELEARNING = RelearningConfig(steps=96)
RANK_ABOVE = 1e-4
"""Of the largest singular value of a change: what lies below is rounding."""


@dataclass(frozen=True)
class Cell:
    """What one method came to."""

    model: str
    scope: str
    method: str
    settings: tuple[tuple[str, str], ...]
    trials: tuple[Trial, ...]
    """Empty where the settings were chosen on another fold, or there is one alone."""
    scores: ModelScores | None
    """None where every setting failed."""
    ranks: tuple[int, ...]
    """Of the change of W_out, per layer."""
    elsewhere: bool
    """Whether other weights than W_out changed."""
    seconds: float
    """Of the processor, all threads together, for the edit alone."""
    over_forgetting: tuple[str, ...]
    concept: ConceptScores | None
    error: str
    said: str
    """What the method said of the edit."""
    took: float = 0.0
    """Seconds by the clock: trials, edit and measurements."""


def run_cell(
    experiment: Experiment,
    plan: Plan,
    work_dir: Path,
    chosen: Sequence[tuple[str, str]] | None = None,
) -> Cell:
    """Read the cell, or try the settings, edit with the best, measure, and write it.

    Args:
        chosen: settings that were found best on another fold, to be taken without trials.
    """
    tried = plan.candidates(_open(experiment, experiment.planted))
    settings = tuple(described(each) for each in tried)
    digest = fingerprint_settings((experiment.identity, settings, chosen, RELEARNING, plan.brief))

    def compute() -> Cell:
        original = _open(experiment, experiment.planted)
        problem = Problem(experiment.forget, experiment.retain, experiment.edit_texts, 0, original)
        trials: tuple[Trial, ...] = ()
        if len(tried) == 1:
            best = 0
        elif chosen is None:
            trials = tuple(run_trial(each, original, problem) for each in tried)
            best = min(range(len(trials)), key=lambda place: trials[place].score)
            if trials[best].score == float("inf"):
                return _failed(experiment, plan.name, trials, trials[best].error)
        else:
            best = settings.index(tuple(chosen))
        edited = copy.deepcopy(original)
        began = time.process_time()
        try:
            said = tried[best].edit_(edited, problem) or ""
        except ValueError as error:
            return _failed(experiment, plan.name, trials, str(error))
        seconds = time.process_time() - began
        gold = gold_cell(experiment, work_dir)
        return _measured(
            experiment,
            plan.name,
            edited,
            original,
            seconds,
            settings[best],
            trials,
            gold,
            plan.brief,
            said,
        )

    return _kept(_path(experiment, plan.name, digest, work_dir), compute)


def gold_cell(experiment: Experiment, work_dir: Path) -> Cell:
    """The model that has never read what is forgotten."""
    return _reference(experiment, "gold", experiment.gold, work_dir)


def unedited_cell(experiment: Experiment, work_dir: Path) -> Cell:
    """The planted model as it is."""
    return _reference(experiment, "none", experiment.planted, work_dir)


def _reference(experiment: Experiment, name: str, folder: Path, work_dir: Path) -> Cell:
    digest = fingerprint_settings((experiment.identity, RELEARNING))

    def compute() -> Cell:
        original = _open(experiment, experiment.planted)
        gold = None if name == "gold" else gold_cell(experiment, work_dir)
        model = _open(experiment, folder)
        return _measured(experiment, name, model, original, 0.0, (), (), gold)

    return _kept(_path(experiment, name, digest, work_dir), compute)


def _measured(
    experiment: Experiment,
    name: str,
    edited: Any,
    original: Any,
    seconds: float,
    settings: tuple[tuple[str, str], ...],
    trials: tuple[Trial, ...],
    gold: Cell | None,
    brief: bool = False,
    said: str = "",
) -> Cell:
    reference = None if gold is None else gold.scores
    scores = measure_model(edited, original, _measures(experiment, brief), reference)
    ranks, elsewhere = changed(original, edited)
    concept = None
    if experiment.concept_stories:
        places = (experiment.first_mentions, experiment.later_mentions, experiment.concept_stories)
        concept = score_concept(edited, original, *places, WORD)
    return Cell(
        model=experiment.model,
        scope=experiment.scope,
        method=name,
        settings=settings,
        trials=trials,
        scores=scores,
        ranks=ranks,
        elsewhere=elsewhere,
        seconds=seconds,
        over_forgetting=() if reference is None else over_forgetting(scores, reference),
        concept=concept,
        error="",
        said=said,
    )


def _measures(experiment: Experiment, brief: bool) -> Measures:
    lessons: tuple[Lesson, ...] = ("facts",)
    if not brief:
        lessons = lessons_for(experiment.forget, experiment.held_out_texts)
    return Measures(
        forget=experiment.forget,
        retain=experiment.retain,
        texts=experiment.held_out_texts,
        near=experiment.near,
        far=experiment.far,
        lessons=lessons,
        relearning=RELEARNING,
        bits=() if brief else (8, 4),
        depth=not brief,
    )


def _failed(experiment: Experiment, name: str, trials: tuple[Trial, ...], error: str) -> Cell:
    return Cell(
        experiment.model,
        experiment.scope,
        name,
        (),
        trials,
        None,
        (),
        False,
        0.0,
        (),
        None,
        error,
        "",
    )


def _open(experiment: Experiment, folder: Path) -> Any:
    model = experiment.open(folder)
    for parameter in model.parameters():
        parameter.grad = None
    return model.eval()


@torch.no_grad()
def changed(original: Any, edited: Any) -> tuple[tuple[int, ...], bool]:
    """The rank of every layer's change of W_out, and whether any other weight changed.

    Neurons that were added count one each, zero ones nothing.
    """
    before, after = get_host(original), get_host(edited)
    ranks, outs = [], set()
    for layer in range(before.n_layers):
        old, new = (host.mlp_weights(layer).tensor.out for host in (before, after))
        outs |= {weight.untyped_storage().data_ptr() for weight in (old, new)}
        extra = new.shape[1] - old.shape[1]
        if extra:
            ranks.append(int(new[:, old.shape[1] :].any(0).sum()))
            continue
        singular = torch.linalg.svdvals((new - old).double().cpu())
        ranks.append(int((singular > RANK_ABOVE * singular[0]).sum()) if singular[0] > 0 else 0)
    others = dict(before.model.named_parameters())
    elsewhere = any(
        name not in others
        or others[name].shape != value.shape
        or not torch.equal(others[name], value)
        for name, value in after.model.named_parameters()
        if value.untyped_storage().data_ptr() not in outs
    )
    return tuple(ranks), elsewhere


def _path(experiment: Experiment, method: str, digest: str, work_dir: Path) -> Path:
    name = f"{experiment.model}-{experiment.scope}-{method}".replace(" ", "_").replace("/", "_")
    return work_dir / "cells" / f"{name}-{digest}.json"


def _kept(path: Path, compute: Callable[[], Cell]) -> Cell:
    if path.exists():
        try:
            return from_plain(Cell, json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{path} cannot be read ({error}): delete it to start again") from None
    began = time.monotonic()
    cell = compute()
    cell = replace(cell, took=time.monotonic() - began)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(to_plain(cell), indent=1, allow_nan=False) + "\n").encode())
    return cell
