"""Planted facts and a planted concept, forgotten by every method: the tables of issue and README.

Bundled story models are fine-tuned on 90 facts about invented names, or on stories of an invented
animal; gold models are trained alike without what is to be forgotten. Every method is tuned on the
first fold of names (at most four trials), run on every scope, and measured. Everything is kept in
the work folder: stopped, the same command goes on.

    python -m tl_bilinear.recipes.unlearning_stories --work-dir .cache/unlearning --text TEXT
"""

import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from tl_bilinear.conversion.memory import keep_freed_memory
from tl_bilinear.one_line_errors import errors_in_one_line
from tl_bilinear.optimisation.files import replace_file
from tl_bilinear.recipes.planted import summary
from tl_bilinear.recipes.planted.cells import (
    Cell,
    gold_cell,
    run_cell,
    unedited_cell,
)
from tl_bilinear.recipes.planted.claims import METHOD
from tl_bilinear.recipes.planted.experiments import (
    FOLDS,
    MODELS,
    SCOPES,
    Experiment,
    experiments,
)
from tl_bilinear.recipes.planted.page import page, rows_of
from tl_bilinear.recipes.planted.plans import Plan, plans
from tl_bilinear.recipes.planted.planting import story_text
from tl_bilinear.recipes.planted.recall import Recall, measure_recall
from tl_bilinear.recipes.planted.summary import Row
from tl_bilinear.recipes.toy_runs import seconds_of
from tl_bilinear.views.circuit_figure import save_figure
from tl_bilinear.views.unlearning import Line, MethodBar, lines_figure, methods_figure

PAGE = Path("benchmarks/unlearning_stories.md")
BETWEEN_PAGES = 120.0
"""Seconds: what a killed run leaves behind is no older than this, or one cell."""
DRAWN = {"none": "unedited", METHOD: "edited", "gold": "gold"}
LESSONS = {"facts": "the same facts", "half": "half of the names", "text": "stories alone"}


def run(found: Iterator[Experiment], work_dir: Path, wanted: Sequence[Plan]) -> Iterator[Cell]:
    """Every cell, in the order of the tables; tuned on a model's first experiment.

    Args:
        wanted: the methods, in the order of the tables.
    """
    tuned: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {}
    for experiment in found:
        gold = gold_cell(experiment, work_dir)  # first: all others are measured against it
        yield unedited_cell(experiment, work_dir)
        yield gold
        for plan in wanted:
            if plan.brief and (experiment.scope not in FOLDS or experiment.model != MODELS[0]):
                continue
            key = (experiment.model, plan.name)
            # A concept is another problem than facts: it is tuned for itself.
            chosen = tuned.get(key) if experiment.scope in SCOPES[:-1] else None
            cell = run_cell(experiment, plan, work_dir, chosen)
            if cell.scores is not None and experiment.scope in FOLDS:
                tuned.setdefault(key, cell.settings)
            yield cell


def write_page(
    cells: Sequence[Cell],
    recalls: Sequence[Recall],
    target: Path,
    command: str,
    text: str,
    planting_seconds: float,
) -> None:
    """The page, and two pictures per model beside it: methods, and relearning."""
    folds = [cell for cell in cells if cell.scope in FOLDS]
    figures: dict[str, list[str]] = {}
    target.parent.mkdir(parents=True, exist_ok=True)
    for model in dict.fromkeys(cell.model for cell in folds):
        rows = rows_of(model, [cell for cell in folds if cell.model == model])
        for kind, figure in (("methods", methods_of(rows)), ("relearning", relearning_of(rows))):
            picture = target.with_name(f"{target.stem}_{model}_{kind}.svg")
            save_figure(figure, picture)
            figures.setdefault(model, []).append(picture.name)
    written = page(
        cells,
        recalls,
        command=command,
        text=text,
        figures=figures,
        planting_seconds=planting_seconds,
    )
    replace_file(target, written.encode())


def methods_of(rows: Mapping[str, Row]) -> Any:
    """Forget accuracy on unseen wordings, retained accuracy and KL of every method."""

    def value(row: Row, number: summary.Number) -> tuple[float, float]:
        interval = row.interval(number)
        return row.mean(number), 0.0 if interval is None else interval.half

    numbers = (summary.forget_unseen, summary.retain_accuracy, summary.story_kl)
    return methods_figure(
        [
            MethodBar(row.method, *(value(row, number) for number in numbers))
            for row in rows.values()
            if not row.failed
        ]
    )


def relearning_of(rows: Mapping[str, Row]) -> Any:
    """Accuracy on the forgotten facts while they are taught again; half of them; stories alone."""
    panels = {}
    for lesson, title in LESSONS.items():
        lines = []
        for name, role in DRAWN.items():
            curve = mean_curve(rows[name], lesson) if name in rows else None
            if curve is not None:
                lines.append(Line(name, role, *curve))
        panels[title] = lines
    return lines_figure(panels, "steps", "accuracy on what was forgotten")


def mean_curve(row: Row, lesson: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Steps, and the accuracy behind each, mean over the folds."""
    curves = [
        curve
        for cell in row.cells
        if cell.scores is not None
        for curve in cell.scores.relearning
        if curve.lesson == lesson
    ]
    if not curves:
        return None
    known = zip(*(curve.accuracy for curve in curves), strict=True)
    return tuple(map(float, curves[0].steps)), tuple(fmean(values) for values in known)


def _main(
    work_dir: Annotated[Path, typer.Option(help="Plantings and results; resumes from here.")],
    text: Annotated[Path | None, typer.Option(help="Stories; else the teacher's own.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page.")] = PAGE,
    models: Annotated[list[str], typer.Option("--model", help="Only these.")] = list(MODELS),  # noqa: B006
    scopes: Annotated[list[str], typer.Option("--scope", help="Only these.")] = list(SCOPES),  # noqa: B006
    methods: Annotated[list[str], typer.Option("--method", help="Only these.")] = [],  # noqa: B006
    plant_only: Annotated[bool, typer.Option(help="Plant, and stop there.")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads of torch; 0 leaves the default.")] = 0,
) -> None:
    """Plant, forget, measure, and write the page."""
    console = Console()
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    with errors_in_one_line(work_dir=work_dir):
        stories = story_text(text, work_dir)
        found = experiments(models, scopes, stories, work_dir / "planted")
        if plant_only:
            for experiment in found:
                console.print(f"{experiment.model} {experiment.scope}: {experiment.planted}")
            return
        cells: list[Cell] = []
        recalls: dict[Path, Recall] = {}
        runs: dict[Path, float] = {}

        def measured() -> Iterator[Experiment]:
            for experiment in found:
                recalls.setdefault(experiment.planted, measure_recall(experiment, stories.held_out))
                runs.update((each, seconds_of(each)) for each in experiment.runs)
                yield experiment

        def write() -> None:
            seconds = sum(runs.values())
            write_page(cells, list(recalls.values()), output, _command(), stories.origin, seconds)

        written = time.monotonic()
        for cell in run(measured(), work_dir, plans(methods)):
            cells.append(cell)
            console.print(_line(cell), soft_wrap=True, highlight=False)
            if time.monotonic() - written > BETWEEN_PAGES:
                write()
                written = time.monotonic()
        write()


def _command() -> str:
    module = "python -m tl_bilinear.recipes.unlearning_stories"
    return f"{module} {shlex.join(sys.argv[1:])}"


def _line(cell: Cell) -> str:
    where = f"{cell.model} {cell.scope} {cell.method}"
    if cell.scores is None:
        return f"{where}: failed, {cell.error}"
    scores = cell.scores
    return (
        f"{where}: F {scores.forget.answers.accuracy:.2f}, R {scores.retain.answers.accuracy:.2f}, "
        f"KL {scores.text.kl:.4f}, {cell.seconds:.0f} s"
    )


if __name__ == "__main__":
    typer.run(_main)
