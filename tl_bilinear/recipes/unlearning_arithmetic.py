"""Experiment on unlearning 1, entangled arithmetic: benchmarks/unlearning_arithmetic.md.

Trains the models (`recipes/arithmetic/models.py`), cuts one of two operations out of each in every
way (`study.py`), and writes a page with a figure. Models and records are kept; when stopped, the
same command goes on.

    python -m tl_bilinear.recipes.unlearning_arithmetic --work-dir .cache/unlearning
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from tqdm.auto import tqdm

from tl_bilinear.one_line_errors import errors_in_one_line
from tl_bilinear.optimisation.files import replace_file
from tl_bilinear.recipes.arithmetic.models import SEEDS, Kind, is_trained, kinds, trained
from tl_bilinear.recipes.arithmetic.page import page, panels
from tl_bilinear.recipes.arithmetic.results import Results
from tl_bilinear.recipes.arithmetic.study import studied


def build(
    work_dir: Path,
    table: Sequence[Kind],
    *,
    seeds: Sequence[int] = SEEDS,
    train: bool = True,
    p: int = 31,
    steps: int | None = None,
) -> Results:
    """Train and study every kind, both directions of forgetting.

    Args:
        work_dir: models and records, for resuming.
        train: train what is not there; else it is named as missing.
        p, steps: another modulus or length of training, for trying it out.
    """
    records, missing, seconds = {}, [], 0.0
    for kind in tqdm(table, unit="kind"):
        if not train and not is_trained(kind, work_dir, seeds, p=p, steps=steps):
            missing.append(kind)
            continue
        models = trained(kind, work_dir, seeds, p=p, steps=steps)
        seconds += sum(each.seconds for each in models)
        records[kind] = tuple(
            studied(model, forget, work_dir) for model in models for forget in (0, 1)
        )
    return Results(records, tuple(missing), seconds)


def write(results: Results, output: Path) -> None:
    """The page, and the figure beside it as SVG.

    Raises:
        ValueError: nothing was studied.
    """
    from tl_bilinear.views import interval_figure, save_figure

    if not results.records:
        raise ValueError("no model is trained yet: leave `--no-train` out")
    shown = panels(results)
    if shown:
        figure = interval_figure(shown, "retained accuracy", mark=0.99)
        save_figure(figure, output.with_suffix(".svg"))
    replace_file(output, page(results).encode())


def _main(
    work_dir: Annotated[Path, typer.Option(help="Models and records; resumes from here.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The page.")] = None,
    seeds: Annotated[int, typer.Option(help="How many, from 0.")] = len(SEEDS),
    train: Annotated[
        bool, typer.Option(help="Train what is not there; else the page names it as missing.")
    ] = True,
    threads: Annotated[int, typer.Option(help="CPU threads of torch; 0 leaves the default.")] = 0,
) -> None:
    """Cut one of two operations out of small networks, in every way; without the network."""
    if threads:
        torch.set_num_threads(threads)
    with errors_in_one_line(work_dir=work_dir):
        results = build(work_dir, list(kinds()), seeds=range(seeds), train=train)
        if output is not None:
            write(results, output)
    Console().print(f"{len(results.records)} kinds studied, {len(results.missing)} missing")


if __name__ == "__main__":
    typer.run(_main)
