"""Errors of commands: what a user can mend is said in one line on stderr, without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer


@contextmanager
def errors_in_one_line(program: str = "error", *, work_dir: Path | None = None) -> Iterator[None]:
    """End a command with exit code 1, or with 130 where it was stopped and can go on.

    Args:
        program: what the line begins with.
        work_dir: where a stopped run is kept; None lets KeyboardInterrupt through.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"{program}: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        if work_dir is None:
            raise
        typer.echo(f"stopped; the same command goes on from {work_dir}", err=True)
        raise typer.Exit(130) from None
