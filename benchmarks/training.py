"""The steps of `tlb.train` and `tlb.bilinearize` beside the same step written plainly.

Baseline, ours, baseline again, in turn in one process on one thread; CPU time from one batch to the
next, so that all of a step is in it: batch, forward, backward, clipping, AdamW (fused), rate,
figures. The first step of each turn, and what comes before it, is left out. "ratio" is tokens per
second of ours over the baseline's, the median over rounds; "itself" is the middle half of the
baseline's second turn against its first.

    python benchmarks/training.py --rounds 9
"""

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import tl_bilinear as tlb  # noqa: E402
from tl_bilinear.checkpoints.bundled import ZOO  # noqa: E402
from tl_bilinear.conversion import DistillationConfig  # noqa: E402
from tl_bilinear.hosts import has_hooked_transformer  # noqa: E402
from tl_bilinear.optimisation import TokenWindows  # noqa: E402
from tl_bilinear.training import TrainingConfig  # noqa: E402

WINDOW = 256
Turn = Callable[[Callable[[int], Any]], None]


class Stamped:
    """Batches that note the CPU time at which each was asked for."""

    def __init__(self, batches: TokenWindows):
        self.batches, self.times = batches, []

    def __call__(self, step: int) -> torch.Tensor:
        self.times.append(time.process_time())
        return self.batches(step)

    def seconds(self) -> float:
        """Median of one step, the first left out."""
        steps = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        return statistics.median(steps[1:])


@dataclass(frozen=True)
class Row:
    """One comparison: CPU milliseconds per step (medians) and the ratio of tokens per second."""

    name: str
    baseline: float
    ours: float
    ratio: float
    itself: tuple[float, float]


def compare(name: str, batches: TokenWindows, baseline: Turn, ours: Turn, rounds: int) -> Row:
    def seconds(turn: Turn) -> float:
        stamped = Stamped(batches)
        turn(stamped)
        return stamped.seconds()

    for warm_up in (baseline, ours):
        seconds(warm_up)
    times = [(seconds(baseline), seconds(ours), seconds(baseline)) for _ in range(rounds)]
    itself = statistics.quantiles([first / again for first, _, again in times], n=4)
    row = Row(
        name,
        1e3 * statistics.median(first for first, _, _ in times),
        1e3 * statistics.median(second for _, second, _ in times),
        statistics.median((a + c) / (2 * b) for a, b, c in times),
        (itself[0], itself[2]),
    )
    low, high = row.itself
    print(
        f"| {row.name} | {row.baseline:.0f} | {row.ours:.0f} | {row.ratio:.3f} "
        f"| {low:.2f}-{high:.2f} |",
        flush=True,
    )
    return row


def models() -> dict[str, Any]:
    """The bundled SwiGLU teacher, and a random one of d_model 256."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    wide = LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=WINDOW,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    return {
        "stories-5l-swiglu": AutoModelForCausalLM.from_pretrained(ZOO / "stories-5l-swiglu"),
        "d_model 256, 4 layers": LlamaForCausalLM(wide),
    }


def plain_training(model: nn.Module, config: TrainingConfig, steps: int) -> Turn:
    """What one would write: transformers' own loss, AdamW, clipping."""

    def run(batches: Callable[[int], Any]) -> None:
        parameters = list(model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True
        )
        losses = []
        model.train()
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step)
            tokens = batches(step)
            loss = model(tokens, labels=tokens, use_cache=False).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, config.clip_norm or 1.0)
            optimizer.step()
            losses.append(loss.item())

    return run


def plain_host_training(model: nn.Module, config: TrainingConfig, steps: int) -> Turn:
    """The same loop over a TransformerLens host, which returns logits."""

    def run(batches: Callable[[int], Any]) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, fused=True)
        losses = []
        model.train()
        for step in range(steps):
            tokens = batches(step)
            logits = model(tokens)
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm or 1.0)
            optimizer.step()
            losses.append(loss.item())

    return run


def plain_distillation(model: nn.Module, config: DistillationConfig, steps: int) -> Turn:
    """A copy with its SiLU as it is, distilled from the model: no gate to anneal."""

    def run(batches: Callable[[int], Any]) -> None:
        student = copy.deepcopy(model).eval()
        parameters = list(student.parameters())
        optimizer = torch.optim.AdamW(
            parameters,
            lr=config.learning_rate,
            betas=(0.9, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        losses = []
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step)
            tokens = batches(step)
            with torch.no_grad():
                expected = model(tokens, use_cache=False).logits.log_softmax(-1)
            found = student(tokens, use_cache=False).logits.log_softmax(-1)
            loss = functional.kl_div(
                found.flatten(0, 1), expected.flatten(0, 1), reduction="batchmean", log_target=True
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, config.clip_norm)
            optimizer.step()
            losses.append(loss.item())

    return run


def our_training(model: nn.Module, config: TrainingConfig, steps: int) -> Turn:
    def run(batches: Callable[[int], Any]) -> None:
        tlb.train(model, batches, config, stop_at=steps, progress=False)

    return run


def our_distillation(
    model: Any, data: torch.Tensor, config: DistillationConfig, steps: int
) -> Turn:
    """`bilinearize` draws its windows itself: the stamps are set where it does."""
    from tl_bilinear.conversion import distillation

    draw = distillation.windows

    def run(batches: Callable[[int], Any]) -> None:
        distillation.windows = lambda data, config, step: batches(step)
        try:
            tlb.bilinearize(model, data, config, stop_at=steps, progress=False)
        finally:
            distillation.windows = draw

    return run


def hosts_of(model: Any) -> dict[str, Any]:
    """The model on each host, from a folder of its own."""
    import tempfile

    from transformers import AutoTokenizer

    hosts = ["transformer_bridge"] + ["hooked_transformer"] * has_hooked_transformer()
    with tempfile.TemporaryDirectory() as folder:
        copied = copy.deepcopy(model)
        copied.save_pretrained(folder)
        AutoTokenizer.from_pretrained(ZOO / "stories-5l").save_pretrained(folder)
        return {host: tlb.load(folder, host=host, frozen_gates=True) for host in hosts}


def measure(
    name: str, model: Any, rounds: int, steps: int, batch_size: int, with_hosts: bool
) -> list[Row]:
    vocabulary = model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(3, vocabulary, (100_000,), generator=generator)
    batches = TokenWindows(data, batch_size, WINDOW)
    training = TrainingConfig(n_steps=10_000, learning_rate=1e-5)
    rows = []
    for phase, schedule in {"annealing": "linear", "at beta 0": "abrupt"}.items():
        distilling = DistillationConfig(
            n_steps=10_000, batch_size=batch_size, window=WINDOW, schedule=schedule
        )
        baseline = plain_distillation(model, distilling, steps)
        ours = our_distillation(model, data, distilling, steps)
        rows.append(compare(f"{name}: bilinearize, {phase}", batches, baseline, ours, rounds))
    plain = plain_training(copy.deepcopy(model), training, steps)
    ours = our_training(copy.deepcopy(model), training, steps)
    rows.append(compare(f"{name}: train", batches, plain, ours, rounds))
    if with_hosts:
        rows += measure_hosts(name, model, batches, training, rounds, steps)
    return rows


def measure_hosts(
    name: str,
    model: Any,
    batches: TokenWindows,
    config: TrainingConfig,
    rounds: int,
    steps: int,
) -> list[Row]:
    """A host beside a loop over it, and beside transformers: fused attention, and eager."""
    rows = []
    for host, hosted in hosts_of(model).items():
        ours = our_training(hosted, config, steps)
        baselines = {"a loop over it": plain_host_training(hosted, config, steps)}
        for attention in ("sdpa", "eager"):
            copied = copy.deepcopy(model)
            copied.set_attn_implementation(attention)
            baselines[f"transformers, {attention}"] = plain_training(copied, config, steps)
        for words, baseline in baselines.items():
            rows.append(compare(f"{name}: train, {host}; {words}", batches, baseline, ours, rounds))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=6, help="of a turn; the first is left out")
    parser.add_argument("--batch", type=int, default=4, help=f"windows of {WINDOW} tokens")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| step | baseline ms | ours ms | ratio | itself |\n|---|---:|---:|---:|---:|")
    for name, model in models().items():
        hosts = name.startswith("stories")
        measure(name, model, given.rounds, given.steps, given.batch, with_hosts=hosts)
    names = ("tl_bilinear", "transformers", "transformer_lens", "torch")
    print("\n" + ", ".join(f"{package} {version(package)}" for package in names) + ", 1 thread.")


if __name__ == "__main__":
    main()
