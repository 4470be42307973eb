"""Which basis makes small circuits, and which circuits hold on other prompts.

    python benchmarks/circuit_bases.py [--models NAME ...] [--prompts 40] [--output FILE]

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
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

import tl_bilinear as tlb
from tl_bilinear.checkpoints.bundled import ZOO, bundled_stories
from tl_bilinear.circuits import trace_dataset
from tl_bilinear.circuits.bases import Basis
from tl_bilinear.circuits.budget import measure
from tl_bilinear.circuits.trace import make_sweep
from tl_bilinear.conversion.evaluation import load_folder
from tl_bilinear.conversion.sampling import sample_stories
from tl_bilinear.dictionary import Dictionary
from tl_bilinear.hosts.provenance import fingerprint
from tl_bilinear.optimisation.files import replace_file
from tl_bilinear.recipes.story_dictionaries import SITES, read_activations
from tl_bilinear.training import TopKConfig, train_dictionary

BASES = ("eigenmodes", "neurons", "random", "w_out", "hosvd", "tucker", "features")
RECIPE = TopKConfig(n_features=512, k=16, n_steps=1000, batch_size=2048, learning_rate=2e-3)
N_STORIES = 256
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


def dictionaries_of(name: str, model: Any, folder: Path) -> dict[int, Dictionary]:
    """A dictionary of every MLP's input, trained on stories that the model writes."""
    host = tlb.get_host(model)
    hooks = [f"blocks.{layer}.{SITES['mlp-in']}" for layer in range(host.n_layers)]
    own, _ = load_folder(ZOO / name)
    samples = sample_stories(
        own,
        N_STORIES,
        seed=2,
        max_tokens=host.n_ctx,
        batch_size=N_STORIES,
        cache_folder=folder,
    )
    seen = read_activations(host, [torch.tensor(row) for row in samples.rows()], hooks)
    found = {}
    for layer, hook in enumerate(hooks):
        start, x = time.process_time(), seen[hook]
        trained = train_dictionary(x, RECIPE, hook_name=hook, folder=folder / f"layer-{layer}")
        found[layer] = trained.dictionary
        with torch.no_grad():
            error = (x - found[layer].decode(found[layer].encode(x))).square().sum()
            unexplained = float(error / (x - x.mean(0)).square().sum())
        seconds = time.process_time() - start
        print(f"dictionary of layer {layer}: FVU {unexplained:.3f}, {seconds:.0f} s", flush=True)
    return found


@torch.no_grad()
def nodes_needed(model: Any, row: torch.Tensor, target: Any, basis: Basis) -> dict[str, Any]:
    """The fewest nodes from which on all larger budgets are good enough.

    Budgets are thresholds that halve; the last is one that keeps 0.97.
    """
    sweep = make_sweep(model, row, target, basis)
    threshold, curve = sweep.ground.scale / 16, []
    while True:
        point = measure(sweep, threshold)
        curve.append([point.nodes, point.kept, point.error])
        if point.kept >= 0.97 or threshold < 1e-9 * sweep.ground.scale:
            break
        threshold /= 2
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
    texts = bundled_stories()[100:104]
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


def named(name: str) -> Basis:
    """A basis that needs no model yet."""
    return cast(Basis, name)


def steps(
    model: Any, n: int, bases: Mapping[str, Callable[[], Basis]]
) -> Iterator[tuple[str, Any]]:
    """(name, computation) of everything that the table is made of."""
    rows = prompts_of(model, n)
    targets = [target_of(model, row) for row in rows]
    half = n // 2
    for name, make in bases.items():
        basis = make()
        for number in range(half):
            row, target = rows[number], targets[number]
            yield f"{name}-{number}", partial(nodes_needed, model, row, target, basis)
        yield f"{name}-held", partial(held_out, model, rows, targets, half, basis)


def run(name: str, n: int, names: list[str], folder: Path) -> dict[str, Any]:
    """Everything, from the folder where it is there already."""
    folder.mkdir(parents=True, exist_ok=True)
    model = tlb.load(name)
    bases = {each: partial(named, each) for each in names}
    if "features" in bases:
        bases["features"] = partial(dictionaries_of, name, model, folder / "dictionaries")
    results = {}
    for name, compute in steps(model, n, bases):
        path = folder / f"{name}.json"
        if not path.exists():
            start = time.process_time()
            found = {"result": compute(), "cpu_seconds": time.process_time() - start}
            replace_file(path, json.dumps(found).encode())
            print(f"{name}: {found['cpu_seconds']:.1f} s", flush=True)
        results[name] = json.loads(path.read_text())
    return results


def page(results: dict[str, Any], model: str, n: int, names: list[str]) -> str:
    """The table as a page."""
    half = n // 2
    lines = [
        f"## {model}",
        "",
        f"{model}, {half} prompts of {LENGTH[0]} to {LENGTH[1]} tokens for choosing, {n - half} "
        "others for ablating.",
        f"Nodes (modes or elements, and head edges): median and quartiles of the fewest from which "
        f"on all larger budgets keep a share of {KEPT} and miss the target by at most {ERROR} of "
        'it; a prompt where no budget does is counted as more than any. "recovered": what the '
        "elements alone bring back of the MLPs' effect when all else of the MLPs is at its mean; "
        '"lost": what goes with them. In brackets: the largest of 20 random draws of equal '
        f"root-mean-square size. Features: a top-k dictionary of every MLP's input "
        f"({RECIPE.n_features} features, k {RECIPE.k}, {RECIPE.n_steps} steps), trained here on "
        f"{N_STORIES} stories that the model writes.",
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
    return "\n".join([*lines, "", verdict(results, half, names)]) + "\n"


def verdict(results: dict[str, Any], half: int, names: list[str]) -> str:
    """What the table says wins."""
    needed = {
        name: statistics.median(
            results[f"{name}-{i}"]["result"]["nodes"] or float("inf") for i in range(half)
        )
        for name in names
    }
    order = sorted(names, key=lambda name: needed[name])
    beyond = []
    for name in names:
        for k in HELD:
            found = results[f"{name}-held"]["result"][str(k)]
            for what, controls in (
                ("recovered", "recovered_by_controls"),
                ("lost", "lost_with_controls"),
            ):
                if found[what] > max(found[controls]):
                    beyond.append(f"{name} ({k} {what})")
    ranks = ", ".join(f"{name} {needed[name]:.0f}" for name in order)
    held = ", ".join(beyond) or "in none: no basis' strongest elements do"
    return (
        f"Fewest nodes, by median: {ranks}. On the other half, more than all 20 random draws of "
        f"equal size: {held}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=["stories-5l", "stories-2l"])
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--bases", nargs="*", default=list(BASES), choices=BASES)
    parser.add_argument("--work-dir", type=Path, default=Path(".cache/circuit_bases"))
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    n, names = given.prompts, given.bases
    parts = []
    for name in given.models:
        folder = given.work_dir / f"{name}-{fingerprint(tlb.get_host(tlb.load(name)))}-{n}"
        parts.append(page(run(name, n, names, folder), name, n, names))
        print(parts[-1])
    if given.output is not None:
        command = "`python benchmarks/circuit_bases.py --output benchmarks/circuit_bases.md`"
        whole = ["# Which basis makes small circuits", command, *parts]
        given.output.write_text("\n\n".join(part.strip() for part in whole) + "\n")


if __name__ == "__main__":
    main()
