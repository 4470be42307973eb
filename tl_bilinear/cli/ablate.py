"""`tl-bilinear ablate`: modes out of a prediction, by hook or written into a new folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from tl_bilinear.characters import visible
from tl_bilinear.cli.screen import (
    Against,
    Host,
    HostChoice,
    ModelName,
    errors_in_one_line,
    progress_on_stderr,
    require_new_folder,
)

if TYPE_CHECKING:
    from tl_bilinear.ablation import ModeSet, WeightEdit
    from tl_bilinear.decompositions import Mode

SHOWN = 8


def ablate(
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="The text before the target.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="What comes next, with its space (' his').")
    ] = None,
    model: ModelName = "stories-5l",
    against: Against = None,
    top: Annotated[
        int, typer.Option("--top", help="How many modes, by |contribution| to the target.")
    ] = 1,
    modes: Annotated[
        Path | None, typer.Option("--modes", help="Take the modes of this file instead.")
    ] = None,
    save_modes: Annotated[
        Path | None, typer.Option("--save-modes", help="Write the modes to this file.")
    ] = None,
    scale: Annotated[
        str, typer.Option("--scale", help='What contributions are multiplied with, or "mean".')
    ] = "0",
    text: Annotated[
        Path | None,
        typer.Option("--text", help="Paragraphs for --scale mean and for the KL divergence."),
    ] = None,
    how: Annotated[
        str, typer.Option("--how", help="With --write: neurons (masking) or refit (removal).")
    ] = "neurons",
    write: Annotated[
        Path | None, typer.Option("--write", help="Write the edited model to this new folder.")
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option("--ledger", help="With --write: the file that undoes it, outside the folder."),
    ] = None,
    host: HostChoice = Host.auto,
) -> None:
    """Scale the modes that make a prediction, or those of a file, and see what changes."""
    with errors_in_one_line(), progress_on_stderr() as progress:
        _check(prompt, target, modes, write, ledger)
        _check_how(how)
        _check_files(modes, save_modes, ledger, text)
        factor = _scale(scale)
        texts = None if text is None else _paragraphs(text)
        progress("importing TransformerLens and loading the model")
        from tl_bilinear.checkpoints import load

        loaded = load(model, host=host.value)
        wanted = target if against is None else (target, against)
        chosen = _choose(loaded, modes, prompt, wanted, top, progress)
        if save_modes is not None:
            from tl_bilinear.ablation import save_modes as write_modes

            found = "" if modes is not None else _found(prompt, target, against, top)
            write_modes(save_modes, chosen, loaded, found=found)
        edit = before = after = None
        if write is None:
            progress("ablating by hook")
            before, after = _by_hook(loaded, chosen, factor, texts, prompt, wanted)
        else:
            progress(f"writing {write.name}")
            edit = _written(
                loaded, chosen, how, factor, texts, prompt, wanted, write=write, ledger=ledger
            )
            if edit.target is not None:
                before, after = edit.target.before, edit.target.after
    _summarise(list(chosen), before, after, edit)
    for path in (save_modes, write, ledger):
        if path is not None:
            typer.echo(f"written: {path}")


def _check(
    prompt: str | None,
    target: str | None,
    modes: Path | None,
    write: Path | None,
    ledger: Path | None,
) -> None:
    if (prompt is None) != (target is None):
        raise ValueError("--prompt and --target belong together: give both or neither")
    if prompt is None and modes is None:
        raise ValueError("give --prompt and --target, whose modes are taken, or --modes FILE")
    if prompt is None and write is None:
        raise ValueError("there is nothing to do with --modes alone: add --prompt, or --write")
    if ledger is not None and write is None:
        raise ValueError("--ledger undoes what --write writes: give both")
    if write is not None:
        require_new_folder(write)
    if ledger is not None and write is not None and write.resolve() in ledger.resolve().parents:
        raise ValueError(
            f"{ledger} lies in the model's folder, where anyone who gets the model gets it: give "
            "--ledger a place outside of it"
        )


def _check_how(how: str) -> None:
    if how not in ("neurons", "refit"):
        raise ValueError(f"--how must be neurons or refit, got {how!r}")


def _check_files(*paths: Path | None) -> None:
    """Of --modes, --save-modes, --ledger and --text."""
    files = [path.resolve() for path in paths if path is not None]
    if len(set(files)) < len(files):
        raise ValueError("--modes, --save-modes, --ledger and --text must be different files")


def _scale(text: str) -> Any:
    if text == "mean":
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f'--scale must be a number or "mean", got {text!r}') from None


def _paragraphs(path: Path) -> list[str]:
    return [part for part in path.read_text(encoding="utf-8").split("\n\n") if part.strip()]


def _found(prompt: str | None, target: str | None, against: str | None, top: int) -> str:
    words = f"tl-bilinear ablate --prompt {prompt!r} --target {target!r}"
    return f"{words}{'' if against is None else f' --against {against!r}'} --top {top}"


def _choose(
    loaded: Any, path: Path | None, prompt: str | None, target: Any, top: int, progress: Any
) -> "ModeSet | list[Mode]":
    if path is not None:
        from tl_bilinear.ablation import load_modes

        return load_modes(path, loaded)
    if top < 1:
        raise ValueError(f"--top must be at least 1, got {top}")
    progress("attributing")
    from tl_bilinear.attribution import attribute_modes

    found = attribute_modes(loaded, prompt, target)
    return [mode for mode, _ in found.top(top)]


def _by_hook(
    loaded: Any, modes: Any, scale: Any, texts: Any, prompt: Any, target: Any
) -> tuple[float, float]:
    from tl_bilinear.ablation import ablate as ablated
    from tl_bilinear.attribution import attribute_components

    before = float(attribute_components(loaded, prompt, target).target.sum())
    with ablated(loaded, modes, scale, texts=texts if scale == "mean" else None):
        return before, float(attribute_components(loaded, prompt, target).target.sum())


def _written(
    loaded: Any,
    modes: Any,
    how: str,
    scale: Any,
    texts: Any,
    prompt: Any,
    target: Any,
    *,
    write: Path,
    ledger: Path | None,
) -> "WeightEdit":
    from tl_bilinear.ablation import ablate_
    from tl_bilinear.checkpoints import save_pretrained

    told = {} if prompt is None else {"prompt": prompt, "target": target}
    edit = ablate_(loaded, modes, how, scale=scale, texts=texts, **told)  # pyright: ignore[reportArgumentType]
    if ledger is not None:
        edit.ledger.save(ledger)
    save_pretrained(loaded, write)
    return edit


def _summarise(
    modes: "list[Mode]", before: float | None, after: float | None, edit: "WeightEdit | None"
) -> None:
    numbers = Column("", justify="right", no_wrap=True)
    table = Table("mode", numbers, box=SIMPLE)
    for mode in modes[:SHOWN]:
        table.add_row(Text(visible(str(mode))), f"λ {mode.eigenvalue:+.4g}")
    if len(modes) > SHOWN:
        table.add_row(f"and {len(modes) - SHOWN} more", "")
    table.add_section()
    if before is not None and after is not None:
        table.add_row("target before (logits)", f"{before:+.4f}")
        if edit is not None and edit.target is not None:
            table.add_row("direct effect, foreseen", f"{edit.target.direct:+.4f}")
        table.add_row("target after", f"{after:+.4f}")
    if edit is not None:
        table.add_row("kind", f"{edit.kind} ({edit.how})")
        table.add_row("neurons per layer", f"{edit.d_mlp[0]} to {edit.d_mlp[1]}")
        error = max(part.error for part in edit.layers)
        table.add_row("largest error, of what is removed", f"{error:.1e}")
        if edit.left_over > 0:
            table.add_row("left over, of the edit", f"{edit.left_over:.1e}")
        distances = [p.smallest_distance for p in edit.layers if p.smallest_distance is not None]
        if distances:
            table.add_row("nearest to an original neuron", f"{min(distances):.1e}")
        if edit.kl is not None:
            table.add_row(f"KL over {edit.tokens} tokens (nats each)", f"{edit.kl:.2e}")
    Console().print(table)
