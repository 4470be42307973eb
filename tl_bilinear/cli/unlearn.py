"""`tl-bilinear unlearn`: make a copy of a model forget, and report what that did."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from tl_bilinear.cli.screen import Host, HostChoice, errors_in_one_line, progress_on_stderr

if TYPE_CHECKING:
    from tl_bilinear.unlearning.report import UnlearningReport

SUFFIXES = (".html", ".json", ".md")


def unlearn(
    model: Annotated[str, typer.Argument(help="A bundled model, a local folder or a hub id.")],
    forget: Annotated[Path, typer.Argument(help="Questions to forget, a JSON file.")],
    retain: Annotated[Path, typer.Argument(help="Questions to keep, a JSON file.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The report: FILE.html, .json or .md.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", help="A new folder for the edited model.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option("--text", help="Paragraphs of ordinary text; the bundled stories by default."),
    ] = None,
    method: Annotated[str, typer.Option("--method", help="How to unlearn.")] = "fit_edit",
    baselines: Annotated[
        str,
        typer.Option("--baselines", help="Methods to compare with: all, none, or npo,leace,..."),
    ] = "all",
    gold: Annotated[
        str | None, typer.Option("--gold", help="A model trained without the forget set.")
    ] = None,
    near: Annotated[
        Path | None, typer.Option("--near", help="Questions close to the forgotten, a JSON file.")
    ] = None,
    far: Annotated[
        Path | None, typer.Option("--far", help="Questions far from them, a JSON file.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair/--no-repair", help="Train shortly after the edit.")
    ] = True,
    seeds: Annotated[int, typer.Option("--seeds", help="How often the edit is made.")] = 3,
    relearn_steps: Annotated[
        int, typer.Option("--relearn-steps", help="Steps of AdamW that teach it again.")
    ] = 64,
    host: HostChoice = Host.auto,
) -> None:
    """Make a copy of a model forget questions, and say what that removed and what it cost."""
    with errors_in_one_line(), progress_on_stderr() as progress:
        _check(output, save)
        from tl_bilinear.unlearning import RelearningConfig, load_questions

        to_forget, to_keep = load_questions(forget), load_questions(retain)
        close = load_questions(near) if near else ()
        distant = load_questions(far) if far else ()
        progress("importing TransformerLens and loading the model")
        from tl_bilinear.checkpoints import load, save_pretrained
        from tl_bilinear.unlearning import unlearn as run

        try:
            report = run(
                load(model, host=host.value, frozen_gates=True),
                to_forget,
                to_keep,
                texts=_texts(text),
                method=method,
                gold=None if gold is None else load(gold, host=host.value, frozen_gates=True),
                near=close,
                far=distant,
                repair=repair,
                seeds=seeds,
                baselines=_names(baselines),
                relearning=RelearningConfig(steps=relearn_steps),
                progress=progress,
            )
        except KeyboardInterrupt:
            raise ValueError("interrupted: nothing was written, the model is as it was") from None
        # The report first: a model that its class cannot hold is refused when it is saved.
        if output is not None:
            progress(f"writing {output.name}")
            _write(report, output)
        saved = None
        if save is not None:
            progress(f"saving {save.name}")
            saved = save_pretrained(report.model, save)
    _summarise(report)
    # Not through rich, which would wrap a long path.
    if saved is not None:
        typer.echo(f"edited model: {saved}")
    if output is not None:
        typer.echo(f"written: {output} ({output.stat().st_size / 1e3:.0f} kB)")


def _check(output: Path | None, save: Path | None) -> None:
    """Complain, before anything is computed, of what could not be written afterwards."""
    from tl_bilinear.report.write import require_writable

    if output is not None:
        if output.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{output.name}: give one of the suffixes {', '.join(SUFFIXES)}")
        require_writable(output)
        if output.suffix.lower() == ".html":
            from tl_bilinear.views import require_views

            require_views()
    if save is not None and save.exists() and (not save.is_dir() or any(save.iterdir())):
        raise ValueError(f"--save {save} is there already and not empty: give a new folder")


def _texts(path: Path | None) -> list[str]:
    if path is None:
        from tl_bilinear.report.stories import story_beginnings

        return list(story_beginnings())
    return [part for part in path.read_text(encoding="utf-8").split("\n\n") if part.strip()]


def _names(baselines: str) -> list[str] | None:
    if baselines == "all":
        return None
    return [] if baselines == "none" else [name.strip() for name in baselines.split(",")]


def _write(report: "UnlearningReport", path: Path) -> None:
    from tl_bilinear.optimisation.files import replace_file

    if path.suffix.lower() == ".html":
        report.save_html(path)
    else:
        text = report.to_json() if path.suffix.lower() == ".json" else report.to_markdown()
        replace_file(path, text.encode("utf-8"))


def _summarise(report: "UnlearningReport") -> None:
    from tl_bilinear.unlearning.report_tables import headline, method_table

    found = method_table(report)
    kept = (0, 1, 2, 4, 5, 7)  # what fits a screen
    columns = [Column(Text(found.header[i]), justify="right" if i else "left") for i in kept]
    table = Table(*columns, box=SIMPLE)
    for row in found.rows:
        table.add_row(*(Text(row[i]) for i in kept))
    Console().print(table)
    for sentence in headline(report)[1:]:
        typer.echo(sentence)
    for missing in report.missing:
        typer.echo(f"not computed: {missing.what}: {missing.why}")
