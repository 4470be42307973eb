"""`stories-1l` and `stories-2l`: small bilinear story models, each beside twins of another MLP.

A tokenizer of 2,048 tokens is trained on the stories, so that common words are one token. Every
twin (SwiGLU, ReLU, GELU) has the same number of weights and reads the same tokens, and has the
best of three learning rates, chosen on stories that nothing else is measured on, from shorter
runs. Three seeds each; the models of seed 0 go into the zoo. Stopped, the same command goes on.

    python -m tl_bilinear.recipes.small_stories --work-dir .cache/stories --text TEXT
"""

import copy
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from tl_bilinear.checkpoints.bundled import beginning
from tl_bilinear.conversion.evaluation import (
    Evaluation,
    evaluate,
    load_folder,
    read_stories,
    story_stream,
)
from tl_bilinear.conversion.memory import keep_freed_memory
from tl_bilinear.conversion.sampling import sample_stories
from tl_bilinear.conversion.stories import (
    HELD_OUT,
    SAMPLING_BATCH,
    SHIPPED_TEXT,
    STUDENT,
    TEACHER,
    TRAINING_SEED,
    ZOO,
    greedy_text,
)
from tl_bilinear.one_line_errors import errors_in_one_line
from tl_bilinear.optimisation.files import replace_file, whole_folder
from tl_bilinear.recipes.small_story_cards import story_card, twins_page
from tl_bilinear.recipes.story_runs import (
    CONTEXT,
    TOKENS_PER_STEP,
    StoryRecipe,
    StoryRun,
    StorySize,
    StoryText,
    run_story,
)
from tl_bilinear.training import MLP, Shape, train_tokenizer

D_VOCAB = 2048
SIZES = (
    StorySize("stories-1l", Shape(D_VOCAB, n_layers=1, d_model=112, n_ctx=CONTEXT)),
    StorySize(
        "stories-2l", Shape(D_VOCAB, n_layers=2, d_model=112, n_ctx=CONTEXT), latent_noise=0.1
    ),
)
MLPS: tuple[MLP, ...] = ("bilinear", "swiglu", "relu", "gelu")
RATES = (2e-3, 4e-3, 8e-3)
SEEDS = (0, 1, 2)
N_STORIES = 2560
N_STEPS = 3000
SEARCH = 6  # a run for choosing the learning rate has this part of the steps
THIRD_SPLIT = "third split"
N_CHARACTERS = 800
"""Of a held-out story: all of it inside every model's context."""


def story_text(work_dir: Path, text: Path | None, n_stories: int, zoo: Path = ZOO) -> StoryText:
    """Training text, tokenizer and held-out texts.

    Trained on: `n_stories` stories that the bundled SwiGLU model writes, and those of `text`
    without its first 300 and its last one, which may be cut. Of `text` the first 150 stories are
    held out, the next 150 are the third split; without it, both are halves of the shipped text.
    Held-out stories are cut at 800 characters, so that models of any vocabulary are measured on
    the same text, all of it inside their context.

    Raises:
        ValueError: no text, or too few stories in it.
    """
    teacher, teachers_tokenizer = load_folder(zoo / TEACHER)
    samples = sample_stories(
        teacher,
        n_stories,
        seed=TRAINING_SEED,
        batch_size=SAMPLING_BATCH,
        cache_folder=work_dir / "samples-training",
    )
    rows = [row[1:] for row in samples.rows()]
    stories = [
        written.strip()
        for written in teachers_tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
        if "\ufffd" not in written
    ]
    shipped = read_stories(zoo / SHIPPED_TEXT)
    if text is None:
        half = len(shipped) // 2
        held_out = {THIRD_SPLIT: shipped[half:], SHIPPED_TEXT: shipped[:half]}
    else:
        real = read_stories(text)
        if len(real) < 3 * HELD_OUT:
            raise ValueError(
                f"{text} holds {len(real)} stories: {2 * HELD_OUT} are held out and the others "
                f"trained on, so give at least {3 * HELD_OUT}"
            )
        stories += real[2 * HELD_OUT : -1]
        held_out = {
            THIRD_SPLIT: real[HELD_OUT : 2 * HELD_OUT],
            text.name: real[:HELD_OUT],
            SHIPPED_TEXT: shipped,
        }
    tokenizer = train_tokenizer(stories, D_VOCAB)
    cut = {
        name: [beginning(story, N_CHARACTERS) for story in each] for name, each in held_out.items()
    }
    return StoryText(tokenizer, story_stream(tokenizer, stories), cut)


def best_rate(
    size: StorySize,
    mlp: MLP,
    text: StoryText,
    work_dir: Path,
    *,
    n_steps: int,
    rates: Sequence[float] = RATES,
) -> tuple[float, dict[float, float]]:
    """The learning rate of lowest loss on the third split, and each rate's, in nats per token."""
    losses = {}
    for rate in rates:
        run = run_story(StoryRecipe(size, mlp, rate, n_steps), text, work_dir)
        losses[rate] = run.losses[THIRD_SPLIT].nats_per_token
    return min(losses, key=lambda rate: losses[rate]), losses


def runs_of(
    sizes: Sequence[StorySize],
    text: StoryText,
    work_dir: Path,
    *,
    n_steps: int,
    mlps: Sequence[MLP] = MLPS,
    rates: Sequence[float] = RATES,
    seeds: Sequence[int] = SEEDS,
) -> Iterator[tuple[StoryRun, dict[float, float]]]:
    """Every run, the first seed of everything first, with the losses that chose its rate."""
    chosen = {}
    for size in sizes:
        for mlp in mlps:
            steps = max(1, n_steps // SEARCH)
            chosen[size, mlp] = best_rate(size, mlp, text, work_dir, n_steps=steps, rates=rates)
    for seed in seeds:
        for size in sizes:
            for mlp in mlps:
                rate, searched = chosen[size, mlp]
                recipe = StoryRecipe(size, mlp, rate, n_steps, seed)
                yield run_story(recipe, text, work_dir), searched


def others(text: StoryText, zoo: Path = ZOO) -> dict[str, dict[str, Evaluation]]:
    """Losses of the bundled teacher and of its bilinear version, by text and model."""
    losses: dict[str, dict[str, Evaluation]] = {name: {} for name in text.held_out}
    for model_name, shown in (
        (TEACHER, f"{TEACHER} (teacher)"),
        (STUDENT, f"{STUDENT} (converted)"),
    ):
        model, tokenizer = load_folder(zoo / model_name)
        for name, stories in text.held_out.items():
            losses[name][shown] = evaluate(model, tokenizer, stories)
    return losses


def ship(
    run: StoryRun,
    searched: dict[float, float],
    text: StoryText,
    trained_on: str,
    command: str,
    zoo: Path = ZOO,
) -> None:
    """Write a run's model to the zoo: weights in bf16, to be read in float32, and its card."""
    model = run.model()
    rounded = copy.deepcopy(model).bfloat16()
    read = copy.deepcopy(rounded).float()
    changes = [
        abs(
            evaluate(read, text.tokenizer, stories, max_tokens=CONTEXT).nats_per_token
            - run.losses[name].nats_per_token
        )
        for name, stories in text.held_out.items()
    ]
    card = story_card(
        run,
        searched,
        command=command,
        text=trained_on,
        sample=greedy_text(model, text.tokenizer, n_tokens=120),
        rounding=max(changes),
    )
    with whole_folder(zoo / run.recipe.name) as folder:
        rounded.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["dtype"] = "float32"  # what transformers and load() compute in
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        text.tokenizer.save_pretrained(folder)
        shutil.copyfile(zoo / TEACHER / "LICENSE", folder / "LICENSE")
        (folder / "README.md").write_text(card, encoding="utf-8")
        (folder / "model.safetensors").chmod(0o644)


def _main(
    work_dir: Annotated[Path, typer.Option(help="Samples and runs; resumes from here.")],
    text: Annotated[
        Path | None, typer.Option(help="Also train on these stories; some are held out.")
    ] = None,
    zoo: Annotated[Path, typer.Option(help="Where the models lie.")] = ZOO,
    n_stories: Annotated[int, typer.Option(help="Stories that the teacher writes.")] = N_STORIES,
    steps: Annotated[int, typer.Option(help="Steps of a run.")] = N_STEPS,
    page: Annotated[Path | None, typer.Option(help="Write the table of twins here.")] = None,
    only: Annotated[str | None, typer.Option(help="One size alone: stories-1l, say.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of torch; 0 leaves the default.")] = 0,
) -> None:
    """Train the small story models and their twins, without the network."""
    console = Console()
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    sizes = [size for size in SIZES if only in (None, size.name)]
    with errors_in_one_line(work_dir=work_dir):
        if not sizes:
            raise ValueError(f"there is no {only}: give {' or '.join(s.name for s in SIZES)}")
        data = story_text(work_dir, text, n_stories, zoo)
        console.print(
            f"{len(data.stream)} tokens to train on; {steps * TOKENS_PER_STEP} read per run"
        )
        command = "python -m tl_bilinear.recipes.small_stories --work-dir .cache/stories"
        command += f" --steps {steps} --n-stories {n_stories} --threads {torch.get_num_threads()}"
        trained_on = f"{n_stories} stories that `{TEACHER}` wrote (temperature 1, seed 0)"
        if text is not None:
            command += f" --text {text}"
            trained_on += f" and those of {text.name} without its first {2 * HELD_OUT} and last one"
        finished = []
        for run, searched in runs_of(sizes, data, work_dir, n_steps=steps):
            finished.append((run, searched))
            found = ", ".join(
                f"{name} {loss.nats_per_token:.4f}" for name, loss in run.losses.items()
            )
            console.print(f"{run.recipe.name}, seed {run.recipe.seed}: {found}", soft_wrap=True)
            if run.recipe.seed == SEEDS[0]:
                ship(run, searched, data, trained_on, command, zoo)
        if page is not None:
            written = twins_page(
                finished,
                others(data, zoo),
                command=command + f" --page {page}",
                n_text=len(data.stream),
                third_split=THIRD_SPLIT,
            )
            replace_file(page, written.encode())


if __name__ == "__main__":
    typer.run(_main)
