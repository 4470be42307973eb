"""`make parity`: every host beside Hugging Face, as the largest difference of log-probabilities.

Tiny random bilinear models in float32, their gains and biases far from the defaults; family x
host x (raw, compat, folded) x shape. Where a cell does not exist the reason stands below the
table. Any cell above 1e-4, or a self-check that fails, ends the command with an error.
"""

import copy
import logging
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from families import (  # noqa: E402
    BIASES,
    FAMILIES,
    NO_BIAS,
    bridge_of,
    family,
    hooked_of,
    log_probabilities,
    process_,
)

import tl_bilinear as tlb  # noqa: E402
from tl_bilinear.hosts import has_hooked_transformer  # noqa: E402

LIMIT = 1e-4
MODES = ("raw", "compat", "folded")
SHAPES: dict[str, dict[str, Any]] = {
    "all heads": {"num_key_value_heads": 4},
    "GQA": {},
    "tied": {"tie_word_embeddings": True},
    "square": {"intermediate_size": 16},
    "biases": {},
    "all": {"tie_word_embeddings": True, "intermediate_size": 16},
}
TOKENS = torch.randint(0, 40, (3, 20), generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Row:
    family: str
    host: str
    mode: str
    cells: tuple[float | None, ...]
    """One per shape; None where the cell does not exist."""


def main() -> int:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rows = [row for name in FAMILIES for row in rows_of(name)]
    print(page(rows))
    worst = max(cell for row in rows for cell in row.cells if cell is not None)
    return 0 if worst <= LIMIT else 1


def rows_of(name: str) -> list[Row]:
    references = {shape: reference(name, shape) for shape in SHAPES}
    hosts = ["TransformerBridge"]
    if has_hooked_transformer():
        hosts.append("HookedTransformer")
    rows = []
    for host in hosts:
        for mode in MODES if host == "TransformerBridge" else ("raw", "folded"):
            cells = tuple(
                None if model is None else difference(model, name, host, mode)
                for model in references.values()
            )
            rows.append(Row(name, host, mode, cells))
    return rows


def reference(name: str, shape: str) -> Any:
    """The transformers model of a cell; None where the class has no such variant."""
    biased = shape in ("biases", "all") and name in BIASES
    if shape == "biases" and not biased:
        return None
    return family(name, **SHAPES[shape], **(BIASES[name] if biased else {}))


def difference(model: Any, name: str, host: str, mode: str) -> float:
    expected = log_probabilities(model, TOKENS)
    copied = copy.deepcopy(model)
    if host == "TransformerBridge":
        booted = process_(bridge_of(copied, name), mode)
    else:
        booted = process_(hooked_of(copied), mode)
    tlb.self_check(booted, reference=lambda tokens: model(tokens).logits)
    return float((log_probabilities(booted, TOKENS) - expected).abs().max())


def page(rows: list[Row]) -> str:
    packages = ("transformer_lens", "transformers", "torch")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    lines = [f"## {versions}", "", "| family | host | mode | " + " | ".join(SHAPES) + " |"]
    lines.append("|---|---|---|" + "---:|" * len(SHAPES))
    for row in rows:
        cells = " | ".join("–" if cell is None else f"{cell:.0e}" for cell in row.cells)
        lines.append(f"| {row.family} | {row.host} | {row.mode} | {cells} |")
    cells = [cell for row in rows for cell in row.cells if cell is not None]
    absent = sum(cell is None for row in rows for cell in row.cells)
    lines += [
        "",
        f"{len(cells)} cells, every one run and self-checked; largest {max(cells):.1e} "
        f"(limit {LIMIT:.0e}). {absent} cells (–) do not exist:",
        "",
        *(f"- {name}, biases: {reason}" for name, reason in NO_BIAS.items()),
        "- HookedTransformer: has no compatibility mode, and is not in TransformerLens 4.x",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
