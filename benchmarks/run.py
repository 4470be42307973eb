"""`make bench`: what the package costs beside TransformerLens' own code.

One thread; contenders interleaved; medians of CPU time. "noise" is the middle half of the
baseline against itself in the same run: a ratio inside it is no difference.
"""

import argparse
import platform
from importlib.metadata import version
from types import SimpleNamespace

import torch
from measure import Comparison, compare
from rich.console import Console
from rich.table import Table

import tl_bilinear as tlb
from tl_bilinear.hosts import has_hooked_transformer

PROMPT = "Lily saw a boy named Tim. Tim was sad because he lost"


def components(rounds: int) -> list[Comparison]:
    """BilinearMLP and BilinearMLPBridge against GatedMLP and GatedMLPBridge (SiLU)."""
    tlb.register()
    found = []
    for d_model, d_mlp, batch, pos in ((64, 172, 4, 128), (512, 2048, 4, 128)):
        x = torch.randn(batch, pos, d_model)
        size = f"d_model {d_model}, d_mlp {d_mlp}, {batch} x {pos} tokens"
        for name, pair in component_pairs(d_model, d_mlp).items():
            baseline, contender = (lambda mlp=mlp, x=x: mlp(x) for mlp in pair)
            found.append(compare(f"{name}, {size}", baseline, contender, rounds, calls=10))
    return found


def component_pairs(d_model: int, d_mlp: int) -> dict:
    """(stock, ours) per host; weights random, biases zero."""
    settings = {
        "n_layers": 1,
        "d_model": d_model,
        "d_head": 32,
        "n_heads": 2,
        "d_mlp": d_mlp,
        "d_vocab": 50,
        "n_ctx": 16,
        "gated_mlp": True,
        "normalization_type": "RMS",
        "device": "cpu",
    }
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    def bridge(act_fn: str):
        cfg = TransformerBridgeConfig(act_fn=act_fn, **settings)
        return TransformerBridge.boot_native(cfg).blocks[0].mlp

    pairs = {"BilinearMLPBridge / GatedMLPBridge": (bridge("silu"), bridge("bilinear"))}
    if has_hooked_transformer():
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        def hooked(act_fn: str):
            return (
                HookedTransformer(HookedTransformerConfig(act_fn=act_fn, **settings)).blocks[0].mlp
            )

        pairs["BilinearMLP / GatedMLP"] = (hooked("silu"), hooked("bilinear"))
    return pairs


def attribution(rounds: int) -> list[Comparison]:
    """`attribute_modes`, all layers, top 16, against `run_with_cache` of everything."""
    found = []
    hosts = ["transformer_bridge"] + ["hooked_transformer"] * has_hooked_transformer()
    for host in hosts:
        model = tlb.load("stories-5l", host=host)
        tokens = model.to_tokens(PROMPT)
        case = SimpleNamespace(
            cache=lambda model=model, tokens=tokens: model.run_with_cache(tokens),
            modes=lambda model=model, tokens=tokens: tlb.attribute_modes(model, tokens, 317),
        )
        name = f"attribute_modes / run_with_cache, stories-5l, {tokens.shape[1]} tokens, {host}"
        found.append(compare(name, case.cache, case.modes, rounds, calls=3))
    return found


def table(rows: list[Comparison]) -> Table:
    """One row per comparison."""
    packages = ("tl_bilinear", "transformer_lens", "torch")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    made = Table(title=f"{versions}, Python {platform.python_version()}, 1 thread")
    for column in (
        "ours / baseline",
        "baseline ms",
        "ours ms",
        "ratio",
        "noise",
        "baseline MiB",
        "ours MiB",
    ):
        made.add_column(column, justify="left" if column == "ours / baseline" else "right")
    for row in rows:
        made.add_row(
            row.name,
            f"{row.baseline:.2f}",
            f"{row.contender:.2f}",
            f"{row.ratio:.2f}",
            f"{row.noise[0]:.2f}-{row.noise[1]:.2f}",
            f"{row.baseline_mib:.1f}",
            f"{row.contender_mib:.1f}",
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        rows = components(rounds) + attribution(rounds)
    Console(width=150).print(table(rows))


if __name__ == "__main__":
    main()
