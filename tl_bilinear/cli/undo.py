"""`tl-bilinear undo`: an edited model as it was, from the ledger that its edit left."""

from pathlib import Path
from typing import Annotated

import typer

from tl_bilinear.cli.screen import (
    Host,
    HostChoice,
    errors_in_one_line,
    progress_on_stderr,
    require_new_folder,
)


def undo(
    model: Annotated[str, typer.Argument(help="The folder of the edited model.")],
    ledger: Annotated[Path, typer.Argument(help="The file that --ledger wrote.")],
    write: Annotated[
        Path, typer.Option("--write", help="Write the model as it was to this new folder.")
    ],
    host: HostChoice = Host.auto,
) -> None:
    """Take an edit of the weights back, from the ledger that it left: bit for bit."""
    with errors_in_one_line(), progress_on_stderr() as progress:
        require_new_folder(write)
        progress("importing TransformerLens and loading the model")
        from tl_bilinear.ablation import Ledger, undo_
        from tl_bilinear.checkpoints import load, save_pretrained

        record = Ledger.load(ledger)
        edited = load(model, host=host.value)
        undo_(edited, record)
        progress(f"writing {write.name}")
        save_pretrained(edited, write)
    typer.echo(f"undone: {record.how}")
    typer.echo(f"written: {write}")
