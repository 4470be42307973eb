"""`tl-bilinear trace`: one prediction's circuit, on the screen and in a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from tl_bilinear.cli.screen import (
    Against,
    Host,
    HostChoice,
    ModelName,
    errors_in_one_line,
    progress_on_stderr,
)

if TYPE_CHECKING:
    from tl_bilinear.circuits import Circuit

SHOWN = 8


def trace(
    prompt: Annotated[str, typer.Option("--prompt", help="The text before the target.")],
    target: Annotated[
        str, typer.Option("--target", help="What comes next, with its space (' his').")
    ],
    model: ModelName = "stories-5l",
    against: Against = None,
    corrupted: Annotated[
        str | None,
        typer.Option("--corrupted", help="A second prompt, as long: trace the difference."),
    ] = None,
    frozen_gates: Annotated[
        bool, typer.Option("--frozen-gates", help="Read a gated model (SwiGLU, GeGLU).")
    ] = False,
    max_nodes: Annotated[
        int | None, typer.Option("--max-nodes", help="How many heads and modes to follow.")
    ] = None,
    kept: Annotated[
        float | None, typer.Option("--kept", help="Follow until this part of |shares| is kept.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="FILE.svg .png .pdf .html .json .dot .mmd or .graphml."
        ),
    ] = None,
    slug: Annotated[
        str | None,
        typer.Option(
            "--attribution-graph",
            metavar="SLUG",
            help="Write what circuit-tracer's viewer and Neuronpedia open: FILE.json or a folder.",
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            help="Paragraphs from which examples of modes are taken; of bundled models stories.",
        ),
    ] = None,
    width: Annotated[float, typer.Option("--width", help="Of a figure, in inches.")] = 5.5,
    host: HostChoice = Host.auto,
) -> None:
    """Trace one prediction back to the tokens: a circuit whose flows add up to the logit."""
    with errors_in_one_line(), progress_on_stderr() as progress:
        _check(output, slug, width)
        progress("importing TransformerLens and loading the model")
        from tl_bilinear.checkpoints import load
        from tl_bilinear.circuits import trace_circuit

        loaded = load(model, host=host.value, frozen_gates=frozen_gates)
        progress("tracing")
        circuit = trace_circuit(
            loaded,
            prompt,
            target if against is None else (target, against),
            corrupted,
            max_nodes=max_nodes,
            kept=kept,
        )
        circuit = _read(loaded, model, circuit, text, progress)
        path = None
        if output is not None:
            progress(f"writing {output.name}")
            from tl_bilinear.cli.circuit_file import write_circuit

            path = write_circuit(circuit, output, slug, width)
    _summarise(circuit)
    if path is not None:
        # Not through rich, which would wrap a long path.
        typer.echo(f"written: {path} ({path.stat().st_size / 1e3:.0f} kB)")


def _read(
    loaded: Any, model: str, circuit: "Circuit", text: Path | None, progress: Any
) -> "Circuit":
    """With the tokens and examples of its modes, where it has any."""
    from tl_bilinear.checkpoints import bundled_models
    from tl_bilinear.reading import read_modes
    from tl_bilinear.report.stories import story_beginnings

    if not circuit.modes:
        return circuit
    progress("reading the modes' tokens and examples")
    texts: list[str] = []
    if text is not None:
        texts = [part for part in text.read_text(encoding="utf-8").split("\n\n") if part.strip()]
    elif model in bundled_models():
        texts = list(story_beginnings())
    return read_modes(loaded, circuit, texts)


def _check(output: Path | None, slug: str | None, width: float) -> None:
    if output is None:
        if slug is not None:
            raise ValueError("--attribution-graph needs --output: a .json file or a folder")
        return
    from tl_bilinear.cli.circuit_file import require_format

    require_format(output, slug)
    if output.suffix.lower() in (".svg", ".png", ".pdf", ".html"):
        from tl_bilinear.views import require_views

        require_views()
    if width < 2:
        raise ValueError(f"a figure is at least 2 inches wide, got --width {width:g}")


def _summarise(circuit: "Circuit") -> None:
    from tl_bilinear.views.circuit_names import title_of, top_tokens

    numbers = Column("logits", justify="right", no_wrap=True)
    table = Table("node", "tokens", numbers, box=SIMPLE, title=_safe(circuit.target_label))
    for node in circuit.top(SHOWN):
        tokens = " · ".join(top_tokens(node)[:3])
        table.add_row(_safe(title_of(node)), _safe(tokens), f"{node.share:+.4f}")
    table.add_section()
    followed = circuit.target - circuit.remainder - circuit.discrepancy
    rows: list[tuple[str, str]] = [
        (f"followed to its sources, by {len(circuit.nodes)} nodes", f"{followed:+.4f}"),
        ("remainder, not followed", f"{circuit.remainder:+.4f}"),
        ("the model's own value", f"{circuit.target:+.4f}"),
        ("discrepancy", f"{circuit.discrepancy:.1e}"),
        ("kept part of the sum of |shares|", f"{circuit.kept_share:.4f}"),
        ("completeness", f"{circuit.completeness:.4f}"),
    ]
    for name, number in rows:
        table.add_row(name, "", number)
    Console().print(table)


def _safe(text: Any) -> Text:
    """Text that rich takes as it is, its control characters shown."""
    from tl_bilinear.characters import visible

    return Text(visible(str(text)) if text else "")
