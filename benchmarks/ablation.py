"""What ablating 32 modes in every layer costs beside the forward pass itself.

    python benchmarks/ablation.py [--rounds 15] [--output benchmarks/ablation.md]

A random model of 12 layers, d_model 768 and d_mlp 3072; one thread; CPU time. In every round the
plain pass, the pass inside the block, a block that is entered for one pass, and the plain pass
again, so that drift meets all alike. "noise" is the middle half of plain / plain; a ratio counts
as over the limit of 1.10 where it is so beyond the upper end of the noise.
"""

import argparse
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measure import cpu_seconds

import tl_bilinear as tlb
from tl_bilinear.hosts import has_hooked_transformer

LIMIT = 1.10
MODES = 32
SETTINGS: dict[str, Any] = {
    "n_layers": 12,
    "d_model": 768,
    "n_heads": 12,
    "d_head": 64,
    "d_mlp": 3072,
    "d_vocab": 4096,
    "n_ctx": 128,
    "act_fn": "bilinear",
    "gated_mlp": True,
    "normalization_type": "RMS",
    "seed": 0,
    "device": "cpu",
}


@dataclass(frozen=True)
class Row:
    """Medians over rounds."""

    name: str
    plain: float
    """CPU milliseconds."""
    inside: float
    """Pass inside the block / plain pass."""
    entered: float
    """A block entered for one pass / plain pass."""
    noise: tuple[float, float]


def random_model(host: str) -> Any:
    """As TransformerLens initialises it."""
    tlb.register()
    if host == "hooked_transformer":
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        return HookedTransformer(HookedTransformerConfig(**SETTINGS))
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_native(TransformerBridgeConfig(**SETTINGS))


def random_modes() -> list[tlb.Mode]:
    """Four directions with eight modes each, in every layer; what they read does not matter."""
    generator = torch.Generator().manual_seed(1)
    modes = []
    for layer in range(SETTINGS["n_layers"]):
        rows = torch.randn(MODES + 4, SETTINGS["d_model"], generator=generator)
        vectors = rows[4:] / rows[4:].norm(dim=1, keepdim=True)
        modes += [tlb.Mode(layer, rows[i % 4], 1e-3, v) for i, v in enumerate(vectors)]
    return modes


def measure(host: str, batch: int, pos: int, rounds: int) -> Row:
    """One model on `batch` rows of `pos` tokens."""
    model, modes = random_model(host), random_modes()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(SETTINGS["d_vocab"], (batch, pos), generator=generator)

    def plain() -> Any:
        return model(tokens)

    def entered() -> Any:
        with tlb.ablate(model, modes):
            return model(tokens)

    def inside(run: Callable[[], Any]) -> float:
        with tlb.ablate(model, modes):
            return cpu_seconds(run, 1)

    plain()
    entered()
    rows = [
        (cpu_seconds(plain, 1), inside(plain), cpu_seconds(entered, 1), cpu_seconds(plain, 1))
        for _ in range(rounds)
    ]
    noise = statistics.quantiles([last / first for first, _, _, last in rows], n=4)
    return Row(
        name=f"{host}, {batch} x {pos} tokens",
        plain=1e3 * statistics.median(first for first, *_ in rows),
        inside=statistics.median(2 * b / (a + d) for a, b, _, d in rows),
        entered=statistics.median(2 * c / (a + d) for a, _, c, d in rows),
        noise=(noise[0], noise[2]),
    )


def table(rows: list[Row], rounds: int) -> str:
    """The page."""
    packages = ("tl_bilinear", "transformer_lens", "torch")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    lines = [
        f"# What ablating {MODES} modes in every layer costs",
        "",
        f"`python benchmarks/ablation.py --rounds {rounds} --output benchmarks/ablation.md`;",
        f"{versions}, Python",
        f"{platform.python_version()}; 12 layers, d_model 768, d_mlp 3072, float32, one thread,",
        f"CPU time, medians of {rounds} rounds. inside: a pass inside the block over a plain pass.",
        "entered: the same, entering the block included. noise: the middle half of the plain pass",
        f"over itself. Limit: {LIMIT:.2f} beyond the noise.",
        "",
        "| model | plain ms | inside | entered | noise |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.plain:.0f} | {row.inside:.3f} | {row.entered:.3f} | "
            f"{row.noise[0]:.3f}-{row.noise[1]:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    hosts = ["transformer_bridge"] + ["hooked_transformer"] * has_hooked_transformer()
    with torch.no_grad():
        rows = []
        for host in hosts:
            for batch, pos in ((1, 64), (4, 64)):
                rows.append(measure(host, batch, pos, options.rounds))
                print(rows[-1], flush=True)
    page = table(rows, options.rounds)
    print(page)
    if options.output is not None:
        options.output.write_text(page, encoding="utf-8")
    over = [
        row.name for row in rows if max(row.inside, row.entered) > LIMIT + max(row.noise[1] - 1, 0)
    ]
    if over:
        sys.exit(f"over the limit: {over}")


if __name__ == "__main__":
    main()
