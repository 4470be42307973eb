"""What all commands share: the choice of a host, errors in one line, progress on stderr."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tl_bilinear import one_line_errors


class Host(str, Enum):
    auto = "auto"
    hooked_transformer = "hooked_transformer"
    transformer_bridge = "transformer_bridge"


HostChoice = Annotated[Host, typer.Option("--host", help="The TransformerLens class.")]
ModelName = Annotated[
    str, typer.Option("--model", help="A bundled model, a local folder or a hub id.")
]
Against = Annotated[str | None, typer.Option("--against", help="A text whose logit is subtracted.")]


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """What a user can mend is said in one line on stderr, with exit code 1."""
    # Read when torch is first imported: else its threads spin while they wait for each other,
    # which takes ten times as long where other programs want the cores too.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Everything is local; progress bars of other packages would break ours.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with one_line_errors.errors_in_one_line("tl-bilinear"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def require_new_folder(path: Path) -> None:
    """Raises:
    ValueError: a file, or a folder that holds something.
    """
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise ValueError(f"{path} is not an empty folder: give --write a new one")


@contextmanager
def progress_on_stderr() -> Iterator[Any]:
    """A function that shows each step on stderr, with the seconds it has been running."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as bars:

        def step(description: str) -> None:
            _finish(bars)
            bars.add_task(description, total=1)

        yield step
        _finish(bars)


def _finish(bars: Any) -> None:
    for task in bars.tasks:
        bars.update(task.id, completed=1)
