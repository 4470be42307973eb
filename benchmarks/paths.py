"""Pairs of sources by two thin products, beside an MLP call per pair; CPU time in float64.

The model is random: LayerNorm, rotary, d 512, d_mlp 2048, 19 heads in each of 3 layers. The last
MLP then reads 64 sources: the embedding, 57 heads, 3 attention biases, 2 earlier MLPs, and the
constant.

- "source_pairs" is the public function, from tokens to the labelled table: its forward pass over 16
  tokens, its checks and its provenance are in its time. Beside it one call of the layer's weights
  per unordered pair (2,080), which gets the sources for free.
- "pair_table" is what is left once the sources are there. Beside it the same calls made as one
  batch of 2,080 rows, the quickest way that calls the MLP.

Contender and baseline run in turn in one process; medians. The tables are compared first.

    python benchmarks/paths.py --rounds 3
"""

import argparse
import platform
from collections.abc import Callable
from importlib.metadata import version

import torch
from measure import Comparison, compare
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge

import tl_bilinear as tlb
from tl_bilinear.circuits import pair_table
from tl_bilinear.hosts.reading import denominators, directions, take_reading
from tl_bilinear.hosts.sources import source_hooks, source_values, stream_sources
from tl_bilinear.quadratic_map import QuadraticMap

LAYER, POSITIONS, TARGET = 2, 16, (3, 5)


def random_model() -> TransformerBridge:
    tlb.register()
    settings = {
        "n_layers": 3,
        "d_model": 512,
        "d_head": 32,
        "n_heads": 19,
        "d_mlp": 2048,
        "d_vocab": 1000,
        "n_ctx": 64,
        "act_fn": "bilinear",
        "gated_mlp": True,
        "normalization_type": "LNPre",  # a native bridge computes RMS in float32
        "positional_embedding_type": "rotary",
        "rotary_dim": 32,
        "seed": 0,
    }
    model = TransformerBridge.boot_native(TransformerBridgeConfig(**settings))
    return model.to(torch.float64).eval().requires_grad_(False)


class Case:
    """One MLP's sources at one place, and the ways to its table of pairs."""

    def __init__(self, model: TransformerBridge):
        self.model = model
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(0, 1000, (1, POSITIONS), generator=generator)
        host = tlb.get_host(model)
        sources = stream_sources(host, LAYER)
        scale = f"blocks.{LAYER}.ln2.hook_scale"
        reading = take_reading(host, self.tokens, TARGET, [*source_hooks(host, LAYER), scale])
        streams = source_values(host, sources, reading.values)[0, 0]
        self.inputs = streams / reading.values[scale][0, 0]
        self.u = directions(host, reading)[0] / denominators(host, reading)[0, 0]
        self.weights: QuadraticMap = host.mlp_map(LAYER).to(torch.float64)
        one = torch.ones(len(self.inputs) + 1, 1, dtype=torch.float64)
        rows = torch.cat([self.inputs, torch.zeros_like(self.inputs[:1])])
        one[:-1] = 0
        self.rows = torch.cat([rows, one], 1)  # the constant as one source more: [x; 1]
        self.tensor = self.weights.homogeneous()
        self.pairs = torch.triu_indices(len(self.rows), len(self.rows)).T.tolist()

    def public(self) -> torch.Tensor:
        return tlb.source_pairs(self.model, self.tokens, LAYER, TARGET).table[0, 0]

    def table(self) -> torch.Tensor:
        return pair_table(self.weights, self.inputs, self.u)

    def call_per_pair(self) -> torch.Tensor:
        """B(x_s, x_t) of each unordered pair, symmetrised: one call of the layer each."""
        found = self.u.new_empty(len(self.rows), len(self.rows))
        for i, j in self.pairs:
            found[i, j] = found[j, i] = self.tensor(self.rows[i], self.rows[j]) @ self.u
        return found

    def one_batch(self) -> torch.Tensor:
        """The same calls as one: a row per pair."""
        i, j = torch.tensor(self.pairs).T
        values = self.tensor(self.rows[i], self.rows[j]) @ self.u
        found = values.new_empty(len(self.rows), len(self.rows))
        found[i, j] = values
        found[j, i] = values
        return found


def check(case: Case) -> None:
    """The calls of ordered pairs, averaged, are the table; so is what the public function gives."""
    ordered = torch.stack([case.tensor(x.expand_as(case.rows), case.rows) for x in case.rows])
    ordered = ordered @ case.u
    expected, scale = (ordered + ordered.T) / 2, float(ordered.abs().max())
    for found in (case.table(), case.public()):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8 * scale)


def cases(rounds: int) -> list[Comparison]:
    """One row per contender and baseline."""
    case = Case(random_model())
    check(case)
    n = len(case.rows)
    ways: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        (f"source_pairs / {len(case.pairs)} MLP calls", case.call_per_pair, case.public),
        (f"pair_table / one batch of {len(case.pairs)} rows", case.one_batch, case.table),
    ]
    place = f"{n} sources, d {case.inputs.shape[1]}, rank {case.tensor.rank - 1}"
    return [compare(f"{name}, {place}", *both, rounds=rounds) for name, *both in ways]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    packages = ", ".join(f"{n} {version(n)}" for n in ("tl_bilinear", "transformer_lens", "torch"))
    print(f"{packages}, Python {platform.python_version()}, 1 thread, float64, {rounds} rounds\n")
    print("| ours / baseline | baseline ms | ours ms | times faster | noise | MiB | ours MiB |")
    print("|---|---:|---:|---:|---|---:|---:|")
    with torch.no_grad():
        for row in cases(rounds):
            print(
                f"| {row.name} | {row.baseline:.1f} | {row.contender:.1f} | {1 / row.ratio:.0f} | "
                f"{row.noise[0]:.2f}-{row.noise[1]:.2f} | {row.baseline_mib:.0f} | "
                f"{row.contender_mib:.0f} |"
            )


if __name__ == "__main__":
    main()
