"""What tracing costs: wall and CPU seconds, and memory beyond the model.

    python benchmarks/circuits.py [stories-5l] [large] [--output benchmarks/circuits.md]

"stories-5l" traces a prompt of 64 tokens; "large" one of 64 tokens through a random model of 12
layers, d_model 768 and rank 3072. One thread; each in a process of its own.
"""

import argparse
import multiprocessing
import platform
import resource
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

LIMITS = {"stories-5l": (5.0, None), "large": (90.0, 3.0)}


def story() -> tuple[Any, Any, Any]:
    """(model, 64 tokens, target)."""
    import tl_bilinear as tlb
    from tl_bilinear.checkpoints.bundled import bundled_stories

    model = tlb.load("stories-5l")
    return model, model.to_tokens(bundled_stories()[0])[0, :64], (" his", " her")


def large() -> tuple[Any, Any, Any]:
    """A native model of random weights, as TransformerLens initialises it."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    import tl_bilinear as tlb

    tlb.register()
    settings: dict[str, Any] = {
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
    }
    model = TransformerBridge.boot_native(TransformerBridgeConfig(**settings))
    generator = torch.Generator().manual_seed(0)
    return model, torch.randint(4096, (64,), generator=generator), (7, 9)


CASES = {"stories-5l": story, "large": large}


def child(name: str, sender: Any) -> None:
    """Trace once; the peak before is the model's, that of its loading included."""
    torch.set_num_threads(1)
    from tl_bilinear.circuits import trace_circuit

    model, tokens, target = CASES[name]()
    with torch.no_grad():
        model(tokens[None])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    circuit = trace_circuit(model, tokens, target)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    sender.send(
        (wall, cpu, peak, circuit.settings["nodes"], len(circuit.edges), circuit.kept_share)
    )


def measure(name: str) -> tuple:
    """One case in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(name, sender))
    process.start()
    sender.close()
    found = receiver.recv()
    process.join()
    return found


def page(rows: dict[str, tuple]) -> str:
    """The table, with what was asked for."""
    packages = ("tl_bilinear", "transformer_lens", "torch")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    lines = [
        "# What tracing costs",
        "",
        "`python benchmarks/circuits.py --output benchmarks/circuits.md`, one thread, a process "
        "each;",
        f"{versions}, Python {platform.python_version()}. 64 tokens, the default budget of 100 "
        "nodes.",
        "GiB is what the trace adds to the process's peak.",
        "",
        "| model | wall s | CPU s | limit s | GiB | limit GiB | nodes | edges | kept share |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (wall, cpu, peak, nodes, edges, kept) in rows.items():
        seconds, memory = LIMITS[name]
        lines.append(
            f"| {name} | {wall:.1f} | {cpu:.1f} | {seconds:.0f} | {peak:.2f} | {memory or '-'} | "
            f"{nodes} | {edges} | {kept:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found = page({name: measure(name) for name in arguments.cases or CASES})
    print(found)
    if arguments.output is not None:
        arguments.output.write_text(found)


if __name__ == "__main__":
    main()
