"""Ways to convert the bundled teacher, compared at equal tokens: benchmarks/conversion.md.

Three losses (divergence from the teacher, next token, and both), each with the gate dropped at once
and annealed linearly over the first 30 % of the steps; then, with the best of these losses, the
other schedules. Every way is run with the same seeds, and a seed reads the same windows of text in
every way. Runs are kept; when stopped, the same command goes on.

    python -m tl_bilinear.recipes.conversion_table --work-dir .cache/models
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import Annotated

import torch
import typer
from jaxtyping import Int
from rich.console import Console
from torch import Tensor

from tl_bilinear.checkpoints.bundled import ZOO
from tl_bilinear.conversion import DistillationConfig, bilinearize
from tl_bilinear.conversion.card import machine
from tl_bilinear.conversion.evaluation import Evaluation, evaluate, load_folder, read_stories
from tl_bilinear.conversion.memory import keep_freed_memory
from tl_bilinear.conversion.stories import (
    HELD_OUT,
    SHIPPED_TEXT,
    TEACHER,
    training_stream,
)
from tl_bilinear.conversion.story_stages import N_STORIES, Stage
from tl_bilinear.one_line_errors import errors_in_one_line
from tl_bilinear.optimisation.files import (
    fingerprint_parameters,
    fingerprint_settings,
    fingerprint_tokens,
    replace_file,
)
from tl_bilinear.recipes.interval import Interval, student_interval
from tl_bilinear.recipes.toy_runs import seconds_of

LOSSES = {"KL": (1.0, 0.0), "next token": (0.0, 1.0), "KL + 0.2 next token": (1.0, 0.2)}
"""Weights of the divergence and of the next-token loss."""
FIRST_SCHEDULES = ("abrupt", "linear")
MORE_SCHEDULES = ("exponential", "logistic", "smootherstep")
BUDGET = DistillationConfig(n_steps=256, batch_size=8)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Way:
    """One way to convert: a name of `LOSSES` and one of `SCHEDULES`."""

    loss: str
    schedule: str

    def config(self, budget: DistillationConfig, seed: int) -> DistillationConfig:
        kl, next_token = LOSSES[self.loss]
        return replace(
            budget, kl_weight=kl, next_token_weight=next_token, schedule=self.schedule, seed=seed
        )


@dataclass(frozen=True)
class Outcome:
    """What one way came to: losses by text, one per seed, and seconds of training."""

    way: Way
    losses: dict[str, tuple[Evaluation, ...]]
    seconds: tuple[float, ...]

    def nats(self, text: str) -> list[float]:
        return [each.nats_per_token for each in self.losses[text]]


@dataclass(frozen=True)
class ConversionTable:
    """All outcomes, the best first, beside the teacher's own losses."""

    outcomes: tuple[Outcome, ...]
    teacher: dict[str, Evaluation]
    budget: DistillationConfig
    seeds: tuple[int, ...]
    n_stories: int
    text: Path | None
    n_tokens: int

    @property
    def best(self) -> Way:
        return self.outcomes[0].way


class Comparison:
    """Runs ways of converting one teacher on one stream; finished runs are read back."""

    def __init__(
        self,
        teacher_folder: Path,
        work_dir: Path,
        data: Int[Tensor, " n_tokens"],
        texts: dict[str, list[str]],
        *,
        budget: DistillationConfig = BUDGET,
        seeds: Sequence[int] = SEEDS,
    ):
        """
        Args:
            texts: what is evaluated on; the first ranks the ways.
        """
        self.teacher, self.tokenizer = load_folder(teacher_folder)
        self.work_dir, self.data, self.texts = work_dir, data, texts
        self.budget, self.seeds = budget, tuple(seeds)
        parts = (fingerprint_parameters(self.teacher), fingerprint_tokens(data), texts)
        self.identity = fingerprint_settings(parts)

    def evaluated(self, model) -> dict[str, Evaluation]:
        """The losses on every text."""
        return {name: evaluate(model, self.tokenizer, text) for name, text in self.texts.items()}

    def run(self, way: Way, seed: int) -> tuple[dict[str, Evaluation], float]:
        """The losses of one run, and its seconds of training."""
        config = way.config(self.budget, seed)
        folder = self.work_dir / f"conversion-{self.identity}-{fingerprint_settings(config)}"
        done = folder / "losses.json"
        if not done.exists():
            student = bilinearize(self.teacher, self.data, config, out_folder=folder)
            losses = {name: asdict(each) for name, each in self.evaluated(student).items()}
            record = {"losses": losses, "seconds": seconds_of(folder)}
            replace_file(done, json.dumps(record, indent=2).encode())
        record = json.loads(done.read_text(encoding="utf-8"))
        return {k: Evaluation(**v) for k, v in record["losses"].items()}, record["seconds"]

    def outcomes(self, ways: Sequence[Way]) -> list[Outcome]:
        """Every way with every seed, seed by seed."""
        runs = {(way, seed): self.run(way, seed) for seed in self.seeds for way in ways}
        found = []
        for way in ways:
            parts = [runs[way, seed] for seed in self.seeds]
            losses = {name: tuple(losses[name] for losses, _ in parts) for name in self.texts}
            found.append(Outcome(way, losses, tuple(seconds for _, seconds in parts)))
        return found

    def ranked(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """The least mean loss on the first text first."""
        first = next(iter(self.texts))
        return sorted(outcomes, key=lambda outcome: sum(outcome.nats(first)))


def build(
    work_dir: Path,
    *,
    zoo: Path = ZOO,
    text: Path | None = None,
    n_stories: int = N_STORIES,
    n_evaluated: int | None = None,
    budget: DistillationConfig = BUDGET,
    seeds: Sequence[int] = SEEDS,
) -> ConversionTable:
    """Run every way, and return the table.

    Args:
        work_dir: the teacher's samples and the runs, for resuming.
        zoo: holds the teacher and the shipped text, which ranks the ways.
        text: more stories to train on; its first 150 are evaluated on instead.
        n_stories: how many stories the teacher writes for training.
        n_evaluated: evaluate on the first so many stories of each text; all where it is None.
        budget: steps, windows and rates of every run.
        seeds: of the windows.

    Raises:
        ValueError: fewer than two seeds, no text, or whatever `bilinearize` raises.
    """
    student_interval([0.0] * len(seeds))
    teacher, tokenizer = load_folder(zoo / TEACHER)
    data = training_stream(teacher, tokenizer, Stage(budget, n_stories), text, work_dir)
    texts = {SHIPPED_TEXT: read_stories(zoo / SHIPPED_TEXT)[:n_evaluated]}
    if text is not None:
        texts[text.name] = read_stories(text)[:HELD_OUT][:n_evaluated]
    compared = Comparison(zoo / TEACHER, work_dir, data, texts, budget=budget, seeds=seeds)
    first = compared.outcomes([Way(a, b) for a in LOSSES for b in FIRST_SCHEDULES])
    loss = compared.ranked(first)[0].way.loss
    more = compared.outcomes([Way(loss, schedule) for schedule in MORE_SCHEDULES])
    return ConversionTable(
        outcomes=tuple(compared.ranked([*first, *more])),
        teacher=compared.evaluated(teacher),
        budget=budget,
        seeds=tuple(seeds),
        n_stories=n_stories,
        text=text,
        n_tokens=len(data),
    )


def page(table: ConversionTable) -> str:
    """The whole page, in Markdown."""
    c = table.budget
    text = f"{table.n_stories} stories that the teacher wrote"
    if table.text is not None:
        text += f" and {table.text.name} without its first {HELD_OUT} stories"
    parts = [
        "# Ways to convert, at equal tokens",
        f"""\
Written by `make conversion` (`tl_bilinear/recipes/conversion_table.py`). The bundled teacher,
`{TEACHER}`, made bilinear by `tlb.bilinearize` in each of these ways: {c.n_steps} steps of
{c.batch_size} windows of {c.window} tokens, {c.n_steps * c.batch_size * c.window:,} tokens in all,
from a text of {table.n_tokens:,} ({text}). All else is equal: AdamW, learning rate
{c.learning_rate:g} after {c.warmup_steps} steps, cosine to {c.final_learning_rate:g}; annealing
takes the first {c.anneal_fraction:.0%} of the steps, "abrupt" none. Seeds
{", ".join(map(str, table.seeds))} choose the windows, the same ones in every way.""",
        "\n".join(_rows(table, SHIPPED_TEXT)),
        f"""\
Losses on `{SHIPPED_TEXT}`, held out, which the teacher wrote; the teacher itself has
{_both(table.teacher[SHIPPED_TEXT])}. "±" is half of Student's 95 % interval over
{len(table.seeds)} seeds; "behind the best" has that of the differences, seed by seed, each for
itself: nothing is added for comparing so many ways. Seconds are wall time on a shared machine.""",
        _verdict(table),
    ]
    if table.text is not None:
        parts += [
            f"On the first {HELD_OUT} stories of {table.text.name}, which another model wrote:",
            "\n".join(_rows(table, table.text.name)),
            f"The teacher itself has {_both(table.teacher[table.text.name])}.",
        ]
    # Paragraphs are filled; a table's lines stay as they are.
    filled = [part if part.startswith(("|", "#")) else fill(part, 100) for part in parts]
    return "\n\n".join([*filled, f"{machine()}."]) + "\n"


def _verdict(table: ConversionTable) -> str:
    """How far the default of `tlb.bilinearize` is behind the best, on the first text."""
    default = next(
        outcome
        for outcome in table.outcomes
        if outcome.way.config(DistillationConfig(), 0) == DistillationConfig()
    )
    words = f"The default of `tlb.bilinearize` is {default.way.loss}, {default.way.schedule}"
    if default.way == table.best:
        return f"{words}: the best here."
    behind = _behind(default, table.outcomes[0], SHIPPED_TEXT)
    verdict = (
        f"no difference that {len(table.seeds)} seeds show"
        if behind.mean <= behind.half
        else "worse"
    )
    return f"{words}: {behind} nats behind the best, {verdict}."


def _behind(outcome: Outcome, best: Outcome, text: str) -> Interval:
    pairs = zip(outcome.nats(text), best.nats(text), strict=True)
    return student_interval([ours - theirs for ours, theirs in pairs])


def _rows(table: ConversionTable, text: str) -> Iterator[str]:
    yield "| loss | schedule | nats per token | bits per byte | behind the best, nats | seconds |"
    yield "|---|---|---:|---:|---:|---:|"
    best = table.outcomes[0]
    for outcome in table.outcomes:
        cells = [
            outcome.way.loss,
            outcome.way.schedule,
            student_interval(outcome.nats(text)),
            student_interval([each.bits_per_byte for each in outcome.losses[text]]),
            "-" if outcome is best else _behind(outcome, best, text),
            f"{sum(outcome.seconds) / len(outcome.seconds):.0f}",
        ]
        yield f"| {' | '.join(map(str, cells))} |"


def _both(loss: Evaluation) -> str:
    return f"{loss.nats_per_token:.4f} nats per token, {loss.bits_per_byte:.4f} bits per byte"


def _main(
    work_dir: Annotated[Path, typer.Option(help="Samples and runs; resumes from here.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The page.")] = None,
    text: Annotated[
        Path | None,
        typer.Option(help=f"Also train on these stories, all but the first {HELD_OUT}."),
    ] = None,
    zoo: Annotated[Path, typer.Option(help="Where the teacher lies.")] = ZOO,
    n_stories: Annotated[int, typer.Option(help="Stories that the teacher writes.")] = N_STORIES,
    steps: Annotated[int, typer.Option(help="Training steps of each run.")] = BUDGET.n_steps,
    seeds: Annotated[int, typer.Option(help="How many, from 0.")] = len(SEEDS),
    threads: Annotated[int, typer.Option(help="CPU threads of torch; 0 leaves the default.")] = 0,
) -> None:
    """Compare ways to convert the bundled SwiGLU teacher, without the network."""
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    with errors_in_one_line(work_dir=work_dir):
        table = build(
            work_dir,
            zoo=zoo,
            text=text,
            n_stories=n_stories,
            budget=replace(BUDGET, n_steps=steps),
            seeds=range(seeds),
        )
        if output is not None:
            replace_file(output, page(table).encode())
    for outcome in table.outcomes:
        nats = student_interval(outcome.nats(SHIPPED_TEXT))
        way = f"{outcome.way.loss}, {outcome.way.schedule}"
        Console().print(f"{way}: {nats} nats per token", highlight=False)


if __name__ == "__main__":
    typer.run(_main)
