"""Your own Trainer script makes a model bilinear: AnnealGates is the one line more.

Everything else is plain transformers, and runs as it did under accelerate. The bundled SwiGLU
story model is converted offline, in seconds, and so not well; alone, or on two processes:

    python demos/convert_with_trainer.py
    make accelerate
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import tl_bilinear as tlb
from tl_bilinear.checkpoints.bundled import ZOO, bundled_stories
from tl_bilinear.conversion import AnnealGates, anneal_, fold_gate_
from tl_bilinear.conversion.evaluation import evaluate
from tl_bilinear.optimisation.files import fingerprint_parameters

TEACHER = ZOO / "stories-5l-swiglu"
WINDOW = 128
HELD_OUT = 20  # of the 200 bundled stories


def convert(folder: Path, steps: int) -> Trainer:
    """The user's script: a model, arguments, data, a Trainer."""
    model = AutoModelForCausalLM.from_pretrained(TEACHER)
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=8,
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            logging_steps=max(1, steps // 10),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            ddp_find_unused_parameters=False,
            seed=0,
        ),
        train_dataset=windows(tokenizer, bundled_stories()[HELD_OUT:]),
        callbacks=[AnnealGates(fraction=0.3)],
    )
    trainer.train()
    trainer.save_model()
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(folder)
    return trainer


def windows(tokenizer: Any, stories: tuple[str, ...]) -> list[dict[str, torch.Tensor]]:
    """The stories one after another, cut into rows for the Trainer."""
    start = tokenizer.bos_token_id
    rows = tokenizer(list(stories), add_special_tokens=False)["input_ids"]
    stream = torch.tensor([token for row in rows for token in (start, *row)])
    return [{"input_ids": row, "labels": row} for row in stream.split(WINDOW) if len(row) == WINDOW]


def require_same(fingerprints: list[str]) -> None:
    """Exit unless every process holds the same weights."""
    if len(set(fingerprints)) > 1:
        raise SystemExit(f"the processes hold different weights: {fingerprints}")


def require_lower(after: float, before: float) -> None:
    """Exit unless the loss went down."""
    if not after < before:
        raise SystemExit(f"training did not bring the loss down: {before:.3f} to {after:.3f}")


def report(folder: Path) -> None:
    """Read the folder, check it, and show the losses; exit where training did not help."""
    console = Console(width=110)
    console.print(str(tlb.self_check(tlb.load(folder))))
    tokenizer, stories = AutoTokenizer.from_pretrained(folder), list(bundled_stories()[:HELD_OUT])
    untrained = AutoModelForCausalLM.from_pretrained(TEACHER)
    anneal_(untrained, beta=0.0)
    fold_gate_(untrained)
    losses = {
        name: evaluate(model, tokenizer, stories).nats_per_token
        for name, model in (
            ("the SwiGLU model", AutoModelForCausalLM.from_pretrained(TEACHER)),
            ("its gate made linear, untrained", untrained),
            ("converted", AutoModelForCausalLM.from_pretrained(folder)),
        )
    }
    table = Table(f"{HELD_OUT} held-out stories", "nats per token")
    for name, loss in losses.items():
        table.add_row(name, f"{loss:.3f}")
    console.print(table)
    require_lower(losses["converted"], losses["its gate made linear, untrained"])
    console.print(f"written: {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("-o", "--output", type=Path, default=Path(".cache/convert-with-trainer"))
    given = parser.parse_args()
    trainer = convert(given.output, given.steps)
    fingerprints = gather_object([fingerprint_parameters(trainer.model)])
    require_same(fingerprints)
    first = trainer.is_world_process_zero()
    # Gloo's thread must have let go of the gathered tensors before the process ends: torch 2.13
    # joins that thread with Python's lock held, which it needs to free them (a deadlock).
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()  # what follows is for one process alone
    if first:
        print(f"{len(fingerprints)} processes, the same weights in each: {fingerprints[0]}")
        report(given.output)


if __name__ == "__main__":
    main()
