"""Which basis makes small circuits, and which circuits hold on other prompts.

    python benchmarks/circuit_bases.py [--model stories-5l] [--prompts 40] [--output FILE]

Prompts are cut from `tl_bilinear/zoo/stories.txt` before the last words of a sentence; the target
is the logit of the model's most likely next token minus that of its second. Half of them choose:
their circuits are traced at falling thresholds, which gives, per prompt, the nodes from which on
every larger budget keeps a share of 0.8 and misses the target by at most 0.2 of it. The elements
that are strongest over this half are then ablated on the other half (`measure_faithfulness`),
beside 20 matched random draws. Every result is kept in --work-dir as it comes; a killed run goes
on from there.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import tl_bilinear as tlb
from tl_bilinear.checkpoints.bundled import bundled_stories
from tl_bilinear.circuits import trace_dataset
from tl_bilinear.circuits.bases import Basis
from tl_bilinear.circuits.budget import measure
from tl_bilinear.circuits.trace import make_sweep

BASES = ("eigenmodes", "neurons", "random", "w_out", "features")
KEPT, ERROR = 0.8, 0.2
HELD = (20, 60)
"""Elements of the circuits that are ablated."""
LENGTH = (10, 24)
"""Tokens of a prompt."""


def prompts_of(model: Any, n: int) -> list[torch.Tensor]:
    """One prompt per story: its first tokens, of lengths that go round."""
    shortest, longest = LENGTH
    rows = []
    for number, text in enumerate(bundled_stories()[:n]):
        rows.append(model.to_tokens(text)[0, : shortest + number % (longest - shortest + 1)].cpu())
    return rows


@torch.no_grad()
def target_of(model: Any, row: torch.Tensor) -> tuple[int, int]:
    """The most likely next token and the second."""
    first, second = model(row[None])[0, -1].topk(2).indices.tolist()
    return first, second


def basis_of(model: Any, name: str) -> Basis:
    """A basis by its name in the table; features are the bundled dictionary's, of one layer."""
    if name != "features":
        return name  # pyright: ignore[reportReturnType]
    dictionary = tlb.load_dictionary("stories-5l-mlp-in")
    return {int(dictionary.hook_name.split(".")[1]): dictionary}


@torch.no_grad()
def nodes_needed(model: Any, row: torch.Tensor, target: Any, basis: Basis) -> dict[str, Any]:
    """The fewest nodes from which on all larger budgets are good enough.

    Budgets are thresholds that fall by a factor of 1.5; the last is one that keeps 0.97.
    """
    sweep = make_sweep(model, row, target, basis)
    threshold, curve = sweep.ground.scale / 16, []
    while True:
        point = measure(sweep, threshold)
        curve.append([point.nodes, point.kept, point.error])
        if point.kept >= 0.97 or threshold < 1e-9 * sweep.ground.scale:
            break
        threshold /= 1.5
    needed = None
    for nodes, kept, error in reversed(curve):
        if kept < KEPT or error > ERROR:
            break
        needed = nodes
    return {"nodes": needed, "curve": curve}


def held_out(
    model: Any, rows: list, targets: list, half: int, basis: Basis
) -> dict[str, dict[str, Any]]:
    """Faithfulness on the second half of the strongest elements of the first."""
    found = trace_dataset(model, rows[:half], targets[:half], max_nodes=200, basis=basis)
    texts = bundled_stories()[100:110]
    results = {}
    for held in HELD:
        result = tlb.measure_faithfulness(
            model, found.modes[:held], rows[half:], targets[half:], texts, basis=basis
        )
        results[str(held)] = {
            "recovered": result.recovered,
            "recovered_by_controls": result.recovered_by_controls,
            "lost": result.lost,
            "lost_with_controls": result.lost_with_controls,
            "tokens": result.tokens,
        }
    return results


def steps(model: Any, n: int, names: list[str]) -> Iterator[tuple[str, Any]]:
    """(name, computation) of everything that the table is made of."""
    rows = prompts_of(model, n)
    targets = [target_of(model, row) for row in rows]
    half = n // 2
    for name in names:
        basis = basis_of(model, name)
        for number in range(half):
            yield (
                f"{name}-{number}",
                lambda b=basis, i=number: nodes_needed(model, rows[i], targets[i], b),
            )
        yield f"{name}-held", lambda b=basis: held_out(model, rows, targets, half, b)


def run(model: Any, n: int, names: list[str], folder: Path) -> dict[str, Any]:
    """Everything, from the folder where it is there already."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {}
    for name, compute in steps(model, n, names):
        path = folder / f"{name}.json"
        if not path.exists():
            start = time.process_time()
            found = {"result": compute(), "cpu_seconds": time.process_time() - start}
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(found))
            os.replace(partial, path)
            print(f"{name}: {found['cpu_seconds']:.1f} s", flush=True)
        results[name] = json.loads(path.read_text())
    return results


def page(results: dict[str, Any], model: str, n: int, names: list[str]) -> str:
    """The table as a page."""
    half = n // 2
    lines = [
        "# Which basis makes small circuits",
        "",
        f"`python benchmarks/circuit_bases.py --model {model} --prompts {n} --output "
        "benchmarks/circuit_bases.md`",
        "",
        f"{model}, {half} prompts of {LENGTH[0]} to {LENGTH[1]} tokens for choosing, {n - half} "
        "others for ablating.",
        f"Nodes (modes or elements, and head edges): median and quartiles of the fewest from which "
        f"on all larger budgets keep a share of {KEPT} and miss the target by at most {ERROR} of "
        'it; a prompt where no budget does is counted as more than any. "recovered": what the '
        "elements alone bring back of the MLPs' effect when all else of the MLPs is at its mean; "
        '"lost": what goes with them. In brackets: the largest of 20 random draws of equal '
        "root-mean-square size. Features are those of layer 2's bundled dictionary; in the other "
        "layers that row has eigenmodes.",
        "",
        "| basis | nodes | " + " | ".join(f"{k} recovered | {k} lost" for k in HELD) + " | CPU s |",
        "|---|---|" + "---|" * (2 * len(HELD) + 1),
    ]
    for name in names:
        own = [results[f"{name}-{i}"] for i in range(half)]
        nodes = [r["result"]["nodes"] or float("inf") for r in own]
        quartiles = statistics.quantiles(nodes, n=4) if len(nodes) > 1 else nodes * 3
        held = results[f"{name}-held"]
        cells = []
        for k in HELD:
            found = held["result"][str(k)]
            for what, controls in (
                ("recovered", "recovered_by_controls"),
                ("lost", "lost_with_controls"),
            ):
                cells.append(f"{found[what]:.2f} ({max(found[controls]):.2f})")
        seconds = sum(r["cpu_seconds"] for r in own) + held["cpu_seconds"]
        low, middle, high = quartiles
        row = [name, f"{middle:.0f} ({low:.0f}-{high:.0f})", *cells, f"{seconds:.0f}"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="stories-5l")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--bases", nargs="*", default=list(BASES), choices=BASES)
    parser.add_argument("--work-dir", type=Path, default=None)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name, n, bases = arguments.model, arguments.prompts, arguments.bases
    folder = arguments.work_dir or Path(".cache/circuit_bases") / f"{Path(name).name}-{n}"
    found = page(run(tlb.load(name), n, bases, folder), name, n, bases)
    print(found)
    if arguments.output is not None:
        arguments.output.write_text(found)


if __name__ == "__main__":
    main()
