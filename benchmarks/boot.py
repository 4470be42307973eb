"""`make bench`: boot time and peak memory of `tlb.load` beside TransformerLens' own boot.

The same folder of weights through both, in turn, each boot in a forked process of its own that has
everything imported. The bridge's baseline is `TransformerBridge.boot_transformers(folder)`;
HookedTransformer's (3.9) is `HookedTransformer.from_pretrained_no_processing` of the folder, which
is put among the official names and whose "linear" is made known, as it is the only way there.
"unchecked" is `check=False`: TransformerLens checks nothing either. Files are in the page cache.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

import tl_bilinear as tlb  # noqa: E402
from tl_bilinear.checkpoints.bundled import ZOO  # noqa: E402
from tl_bilinear.hosts import has_hooked_transformer  # noqa: E402

Boot = Callable[[], Any]
SIZES = {
    "35M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8},
    "150M": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 10},
}


@dataclass(frozen=True)
class Cost:
    """Wall seconds of one boot, CPU seconds, and MiB by which it raised the process's peak."""

    seconds: float
    cpu: float
    mib: float


def random_llama(folder: Path, sizes: dict[str, int]) -> Path:
    """A random Llama with hidden_act "linear", and the bundled tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        num_attention_heads=sizes["hidden_size"] // 64,
        max_position_embeddings=512,
        hidden_act="linear",
        bos_token_id=1,
        eos_token_id=2,
        **sizes,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ZOO / "stories-5l").save_pretrained(folder)
    return folder


def boots(folder: Path, host: str) -> dict[str, Boot]:
    return {
        "baseline": lambda: upstream(folder, host),
        "unchecked": lambda: tlb.load(folder, host=host, check=False),
        "checked": lambda: tlb.load(folder, host=host),
        "baseline again": lambda: upstream(folder, host),
    }


def upstream(folder: Path, host: str) -> Any:
    if host == "transformer_bridge":
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)
    from transformer_lens import HookedTransformer, supported_models
    from transformer_lens.utilities.activation_functions import SUPPORTED_ACTIVATIONS

    SUPPORTED_ACTIVATIONS.setdefault("linear", lambda x: x)
    supported_models.OFFICIAL_MODEL_NAMES.append(str(folder))
    return HookedTransformer.from_pretrained_no_processing(str(folder), device="cpu")


def cost(boot: Boot) -> Cost:
    """In a fork, so that no boot finds what another has cached or freed."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        torch.set_num_threads(1)
        with quiet():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            start, cpu = time.perf_counter(), time.process_time()
            model = boot()
            seconds, used = time.perf_counter() - start, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert model is not None
        sender.send(Cost(seconds, used, (peak - before) / 1024))

    process = context.Process(target=child)
    process.start()
    sender.close()
    found = receiver.recv()
    process.join()
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """TransformerLens' loader prints; a table does not need it."""
    null = os.open(os.devnull, os.O_WRONLY)
    kept = [os.dup(1), os.dup(2)]
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        yield
    finally:
        for saved, descriptor in zip(kept, (1, 2), strict=True):
            os.dup2(saved, descriptor)


def measure(folder: Path, host: str, rounds: int) -> dict[str, list[Cost]]:
    """Every boot once per round, so that drift of the machine meets all alike."""
    contenders = boots(folder, host)
    found: dict[str, list[Cost]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, boot in contenders.items():
            found[name].append(cost(boot))
    return found


def row(name: str, found: dict[str, list[Cost]]) -> list[str]:
    base, again = found["baseline"], found["baseline again"]
    noise = statistics.quantiles([b.cpu / a.cpu for a, b in zip(base, again, strict=True)], n=4)
    cells = [name, f"{1e3 * median(base, 'cpu'):.0f}"]
    for contender in ("unchecked", "checked"):
        ratios = [
            2 * c.cpu / (a.cpu + b.cpu)
            for a, b, c in zip(base, again, found[contender], strict=True)
        ]
        cells += [
            f"{1e3 * median(found[contender], 'cpu'):.0f}",
            f"{statistics.median(ratios):.2f}",
        ]
    cells.append(f"{noise[0]:.2f}-{noise[2]:.2f}")
    cells += [f"{median(found[n], 'mib'):.0f}" for n in ("baseline", "unchecked", "checked")]
    return cells


def median(costs: list[Cost], field: str) -> float:
    return statistics.median(getattr(one, field) for one in costs)


def unforked(rounds: int) -> None:
    """Unchecked bridges beside the baseline in one process: no page faults of a fork in the way."""
    with tempfile.TemporaryDirectory() as parent:
        folders = {"stories-5l": ZOO / "stories-5l"}
        folders["35M"] = random_llama(Path(parent) / "35M", SIZES["35M"])
        for name, folder in folders.items():
            runs = boots(folder, "transformer_bridge")
            del runs["checked"]
            times: dict[str, list[float]] = {key: [] for key in runs}
            with quiet():
                for number in range(rounds + 1):
                    for key, run in runs.items():
                        start = time.process_time()
                        run()
                        times[key] += [time.process_time() - start] if number else []
            first, ours, again = (times[k] for k in ("baseline", "unchecked", "baseline again"))
            rows = zip(first, ours, again, strict=True)
            ratio = statistics.median(2 * b / (a + c) for a, b, c in rows)
            noise = statistics.quantiles([c / a for a, c in zip(first, again, strict=True)], n=4)
            print(f"{name}: {ratio:.2f} of the baseline ({noise[0]:.2f}-{noise[2]:.2f} itself)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--unforked", action="store_true", help="unchecked bridges alone")
    given = parser.parse_args()
    rounds = given.rounds
    torch.set_num_threads(1)
    if given.unforked:
        unforked(rounds)
        return
    table = Table(title="Boot: CPU ms, ratios to TransformerLens' own boot, peak MiB added")
    for column in (
        "model, host",
        "theirs ms",
        "unchecked ms",
        "ratio",
        "checked ms",
        "ratio",
        "noise",
        "theirs MiB",
        "unchecked MiB",
        "checked MiB",
    ):
        table.add_column(column, justify="left" if column == "model, host" else "right")
    hosts = ["transformer_bridge"] + ["hooked_transformer"] * has_hooked_transformer()
    with tempfile.TemporaryDirectory() as parent:
        folders = {"stories-5l": ZOO / "stories-5l"}
        folders |= {name: random_llama(Path(parent) / name, s) for name, s in SIZES.items()}
        for name, folder in folders.items():
            for host in hosts:
                with quiet():  # what is imported, and the page cache, before the forks
                    upstream(folder, host)
                    tlb.load(ZOO / "stories-5l", host=host)
                cells = row(f"{name}, {host}", measure(folder, host, rounds))
                print(" | ".join(cells), flush=True)
                table.add_row(*cells)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
