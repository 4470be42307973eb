"""How long `fit_edit` takes to make a planted story model forget, what it does, and its memory.

    python benchmarks/fit_edit.py --text TEXT [--work-dir .cache/unlearning]
                                  [--model stories-5l ...] [--output benchmarks/fit_edit.md]

Wall-clock seconds of one call with the package's defaults, from a model that is loaded to an edit
that can be applied: 10 of 30 names (three folds), one name, one relation, as in
benchmarks/unlearning_stories.md, whose planted models are planted here where they are missing.
Run it alone: what else runs on the machine is in the seconds.
"""

import argparse
import platform
import resource
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tl_bilinear.conversion.memory import keep_freed_memory
from tl_bilinear.recipes.planted.experiments import MODELS, SCOPES, Experiment, experiments
from tl_bilinear.recipes.planted.planting import story_text
from tl_bilinear.unlearning import accuracy
from tl_bilinear.unlearning.fit import fit_edit
from tl_bilinear.unlearning.metrics import score_texts

LIMIT = 60.0


@dataclass(frozen=True)
class Row:
    """One edit, or the median of several runs of it."""

    name: str
    wall: float
    cpu: float
    tried: int
    linearised: int
    met: bool
    forget: float
    """Accuracy behind the edit, in the edit's wordings."""
    unseen: float
    """In wordings that it did not read."""
    retain: float
    kl: float
    """Of held-out stories, per token."""


def measure(experiment: Experiment, rounds: int) -> Row:
    """Fit `rounds` times; the median by wall clock."""
    model = experiment.open(experiment.planted)

    def fit() -> Any:
        return fit_edit(model, experiment.forget, experiment.retain, texts=experiment.edit_texts)

    timed = []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        edit = fit()
        timed.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = sorted(timed)[(rounds - 1) // 2]
    with edit.applied(model):
        forget = accuracy(model, experiment.forget)
        unseen = accuracy(model, experiment.forget, "unseen")
        retain = accuracy(model, experiment.retain)
        kl = score_texts(model, experiment.open(experiment.planted), experiment.held_out_texts).kl
    accepted = sum(step.accepted for step in edit.history)
    name = f"{experiment.model}, {experiment.scope}"
    return Row(name, wall, cpu, len(edit.history), accepted, edit.met, forget, unseen, retain, kl)


def peak_mib() -> float:
    """The most that this process has ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(rows: list[Row], threads: int, rounds: int, peak: float) -> str:
    """The page.

    Args:
        peak: MiB that the fits and their models add to the process.
    """
    packages = ("tl_bilinear", "transformer_lens", "torch")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    lines = [
        "# How long `fit_edit` takes",
        "",
        f"    python benchmarks/fit_edit.py {' '.join(sys.argv[1:])}",
        "",
        f"{versions}, Python {platform.python_version()}; {threads} of torch's threads, nothing "
        f"else running; the middle of {rounds} run(s). Steps: tried, and of these taken; each one "
        "taken was linearised. Accuracy in the wordings that the edit read, and, of what is "
        "forgotten, in others; KL per token of held-out stories. All of them raise the process' "
        f"peak memory by {peak:.0f} MiB.",
        "",
        "| edit | wall s | CPU s | steps | demands | forgotten, seen | unseen | retained | KL |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.wall:.0f} | {row.cpu:.0f} | {row.tried}, {row.linearised} | "
            f"{'met' if row.met else 'not met'} | {row.forget:.3f} | {row.unseen:.3f} | "
            f"{row.retain:.3f} | {row.kl:.4f} |"
        )
    slowest = max(row.wall for row in rows)
    verdict = "met" if slowest < LIMIT else "**not met**"
    lines += ["", f"Under {LIMIT:.0f} seconds: {verdict}, {slowest:.0f} at most."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="How long fit_edit takes")
    parser.add_argument("--work-dir", type=Path, default=Path(".cache/unlearning"))
    parser.add_argument("--text", type=Path, default=None, help="as for make unlearning-stories")
    parser.add_argument("--model", choices=MODELS, nargs="+", default=[MODELS[0]])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    stories = story_text(options.text, options.work_dir)
    found = experiments(options.model, SCOPES[:-1], stories, options.work_dir / "planted")
    rows, before = [], peak_mib()
    for experiment in found:
        rows.append(measure(experiment, options.rounds))
        print(rows[-1], file=sys.stderr, flush=True)
    page = table(rows, options.threads, options.rounds, peak_mib() - before)
    print(page)
    if options.output is not None:
        options.output.write_text(page)


if __name__ == "__main__":
    main()
