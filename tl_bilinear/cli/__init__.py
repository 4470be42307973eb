"""The command line, `tl-bilinear`: short tables on stdout, progress and errors on stderr."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from tl_bilinear.cli.ablate import ablate
from tl_bilinear.cli.screen import (
    Against,
    Host,
    HostChoice,
    ModelName,
    errors_in_one_line,
    progress_on_stderr,
)
from tl_bilinear.cli.trace import trace
from tl_bilinear.cli.undo import undo
from tl_bilinear.cli.unlearn import unlearn

if TYPE_CHECKING:
    from tl_bilinear.report import Report

app = typer.Typer(
    name="tl-bilinear",
    help="Bilinear transformers, read from their weights inside TransformerLens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(trace)
app.command()(unlearn)
app.command()(ablate)
app.command()(undo)


@app.command()
def report(
    model: Annotated[
        str, typer.Option("--model", help="A bundled model or a local Hugging Face folder.")
    ] = "stories-5l",
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="The text before the target; a story by default.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="What comes next, with its space (' his'). By default ' his' against ' her' "
            "behind the default prompt, and behind another the two most likely tokens.",
        ),
    ] = None,
    against: Against = None,
    layer: Annotated[
        int | None,
        typer.Option("--layer", help="Take this layer apart instead of the two strongest."),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML file to write.")] = Path(
        "report.html"
    ),
    host: HostChoice = Host.auto,
) -> None:
    """Take one prediction of a model apart and write it as one self-contained HTML page."""
    with errors_in_one_line(), progress_on_stderr() as progress:
        from tl_bilinear.report.write import require_writable, write_report
        from tl_bilinear.views import require_views

        require_views()
        require_writable(output)
        progress("importing TransformerLens and loading the model")
        from tl_bilinear.checkpoints import load
        from tl_bilinear.report import measure_report
        from tl_bilinear.report.stories import SOURCE, story_beginnings

        measured = measure_report(
            load(model, host=host.value),
            story_beginnings(),
            texts_source=SOURCE,
            prompt=prompt,
            target=target,
            against=against,
            layer=layer,
            progress=progress,
        )
        progress("writing the page")
        path = write_report(measured, output)
    _summarise(measured, path)


@app.command()
def sweep(
    folder: Annotated[
        Path, typer.Option("-o", "--output", help="The sweep's folder: new, or to be resumed.")
    ],
    model: ModelName = "stories-5l",
    compute: Annotated[
        str, typer.Option("--compute", help="eigenvalues or spectrum.")
    ] = "eigenvalues",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Of the computation: k=8, gauge=traceless, eigenvectors=true."),
    ] = None,
    directions: Annotated[
        str,
        typer.Option(
            "--directions",
            help="tokens, tokens:100-299, basis, targets.json, features.safetensors:key.",
        ),
    ] = "tokens",
    space: Annotated[
        str | None,
        typer.Option("--space", help="Where a file's directions are read: logits|stream|mlp_out."),
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="All by default; 0-4, 1,3.")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory", help="Budget of one process beside the model; a quarter of what is free."
        ),
    ] = None,
    chunk: Annotated[
        int | None, typer.Option("--chunk", help="Directions per file; by the budget.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", help="Of each process.")] = 1,
    host: HostChoice = Host.auto,
) -> None:
    """Compute something for every direction and layer; resumes, and splits under torchrun.

    torchrun --nproc-per-node 2 -m tl_bilinear sweep ... is the same sweep on two processes.
    """
    with errors_in_one_line():
        from tl_bilinear.checkpoints import load
        from tl_bilinear.sweeps.command import interrupted, read_settings, sweep_in_words

        try:
            done = sweep_in_words(
                lambda: load(model, host=host.value),
                compute,
                read_settings(settings or []),
                directions,
                space,
                layers,
                folder,
                memory=memory,
                chunk=chunk,
                threads=threads,
            )
        except KeyboardInterrupt:
            typer.echo(f"tl-bilinear: {interrupted(folder)}", err=True)
            raise typer.Exit(130) from None
    if int(os.environ.get("RANK", "0")) == 0:
        table = Table(Column("sweep", no_wrap=True), "", box=SIMPLE)
        for row in done.summary():
            table.add_row(*map(Text, row))
        Console().print(table)
        typer.echo(f"index: {done.index}")


@app.command()
def models() -> None:
    """List the models that come with the package."""
    with errors_in_one_line():
        from tl_bilinear.checkpoints import bundled_models
        from tl_bilinear.checkpoints.bundled import bundled_folder
        from tl_bilinear.toys import bundled_toys

        names = ("name", "MLP", "layers", "d_model", "d_mlp", "d_vocab")
        table = Table(*(Column(name, no_wrap=True) for name in names), box=SIMPLE)
        for name in bundled_models():
            folder = bundled_folder(name)
            assert folder is not None
            table.add_row(name, *_model_row(folder))
        columns = ("bilinear toy model", "layers", "d_mlp", "test accuracy")
        toys = Table(*(Column(name, no_wrap=True) for name in columns), box=SIMPLE)
        for name in bundled_toys():
            toys.add_row(name, *_toy_row(name))
    Console().print(table)
    Console().print(toys)


@app.command()
def convert(
    model: Annotated[str, typer.Argument(help="A bundled gated model or a transformers folder.")],
    text: Annotated[
        Path, typer.Option("--text", help="Documents between <|endoftext|>, or paragraphs.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A new folder; the run is kept in OUTPUT.run.")
    ],
    held_out: Annotated[
        Path | None,
        typer.Option("--held-out", help="A text to evaluate on; else a twentieth of --text."),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Optimizer steps.")] = 3000,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Windows per step.")] = 16,
    window: Annotated[int, typer.Option("--window", help="Tokens per window.")] = 256,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="The peak.")] = 2e-3,
    schedule: Annotated[
        str,
        typer.Option(
            "--schedule",
            help="How beta falls: linear, cosine, exponential, logistic, smootherstep, abrupt.",
        ),
    ] = "linear",
    anneal_fraction: Annotated[
        float, typer.Option("--anneal-fraction", help="Share of the steps over which it falls.")
    ] = 0.3,
    kl_weight: Annotated[
        float, typer.Option("--kl-weight", help="Of the divergence from the unconverted model.")
    ] = 1.0,
    next_token_weight: Annotated[
        float, typer.Option("--next-token-weight", help="Of the next-token loss.")
    ] = 0.0,
    learned_scale: Annotated[
        bool, typer.Option("--learned-scale", help="Train a factor for every neuron.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Chooses the windows.")] = 0,
) -> None:
    """Make a gated (SwiGLU, GeGLU) model bilinear; the same command resumes a stopped run."""
    with errors_in_one_line():
        from tl_bilinear.conversion import DistillationConfig
        from tl_bilinear.conversion.convert import convert_folder

        config = DistillationConfig(
            n_steps=steps,
            batch_size=batch_size,
            window=window,
            learning_rate=learning_rate,
            warmup_steps=min(50, steps),
            schedule=schedule,
            anneal_fraction=anneal_fraction,
            kl_weight=kl_weight,
            next_token_weight=next_token_weight,
            learned_scale=learned_scale,
            seed=seed,
        )
        command = f"tl-bilinear {shlex.join(sys.argv[1:])}"
        losses = convert_folder(model, text, output, config, held_out=held_out, command=command)
    table = Table("held-out text", "nats per token", "bits per byte", box=SIMPLE)
    for name, loss in losses.items():
        table.add_row(name, f"{loss.nats_per_token:.4f}", f"{loss.bits_per_byte:.4f}")
    Console().print(table)
    typer.echo(f"model: {output}")


def _model_row(folder: Path) -> list[str]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    activation, gated = config["hidden_act"], config["model_type"] != "arcee"
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
    kind = f"gated ({activation})" if gated else f"no gate ({activation})"
    return [
        "bilinear" if activation == "linear" else kind,
        *(f"{config[name]:,}" for name in names),
    ]


def _toy_row(name: str) -> list[str]:
    from tl_bilinear.toys.stored import read_config

    config = read_config(name)
    sizes, test = config["model"], config["measured"]["test"]
    by_operation = test if isinstance(test, dict) else {"": test}
    return [
        *(f"{sizes.get(key, 1):,}" for key in ("n_layers", "d_mlp")),
        ", ".join(f"{key} {value:.3f}".strip() for key, value in by_operation.items()),
    ]


def _summarise(measured: "Report", path: Path) -> None:
    parts, effect, top = measured.components, measured.ablation, measured.top_mode
    table = Table("quantity", "value", title=Text(f"target: {measured.question.words}"))
    table.columns[1].justify = "right"
    changes = effect.control_changes
    rows = [
        ("the model's own value (logits)", f"{float(parts.target[0].sum()):+.4f}"),
        ("sum of all components", f"{float(parts.total[0].sum()):+.4f}"),
        ("discrepancy", f"{float(parts.discrepancy[0].sum()):.1e}"),
        (f"top mode {top.name}: direct effect", f"{top.contribution:+.4f}"),
        (f"ablating {top.name}: change of the target", f"{effect.change:+.4f}"),
        (f"{len(changes)} random modes: least change", f"{min(changes):+.4f}"),
        (f"{len(changes)} random modes: greatest change", f"{max(changes):+.4f}"),
        ("random modes that change it as much", f"{effect.controls_as_large} of {len(changes)}"),
    ]
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    # Not through rich, which would wrap a long path.
    typer.echo(f"page: {path} ({path.stat().st_size / 1e6:.1f} MB)")
