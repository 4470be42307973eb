"""What every model card of a conversion holds: the machine, the losses, the curve."""

import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers

from tl_bilinear.conversion.distillation import DistillationConfig
from tl_bilinear.conversion.evaluation import Evaluation


def machine() -> str:
    """Return this machine's processor, core count and library versions in one line."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [s.split(":", 1)[1] for s in info.read_text().splitlines() if "model name" in s]
        processor = names[0].strip() if names else processor
    return (
        f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s), "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


def loss_table(losses: dict[str, dict[str, Evaluation]]) -> str:
    """Return the losses as a Markdown table, one row per text and model."""
    lines = [
        "| text | model | nats per token | bits per byte | tokens | stories |",
        "|---|---|---|---|---|---|",
    ]
    for text, by_model in losses.items():
        for name, e in by_model.items():
            lines.append(
                f"| {text} | {name} | {e.nats_per_token:.4f} | {e.bits_per_byte:.4f} "
                f"| {e.n_tokens} | {e.n_stories} |"
            )
    return "\n".join(lines)


def curve_table(metrics: list[dict], texts: list[str]) -> str:
    """Return the losses on held-out text while training, as a Markdown table."""
    texts = [text for text in texts if any(text in m for m in metrics)]
    lines = ["| steps | beta | KL (training) | " + " | ".join(texts) + " |"]
    lines.append("|---" * (3 + len(texts)) + "|")
    for m in metrics:
        if all(text in m for text in texts):
            cells = " | ".join(f"{m[text]:.4f}" for text in texts)
            divergence = f"{m['kl']:.4f}" if "kl" in m else ""
            lines.append(f"| {m['step'] + 1} | {m['beta']:.2f} | {divergence} | {cells} |")
    return "\n".join(lines)


def conversion_card(
    name: str,
    source: str,
    config: DistillationConfig,
    losses: dict[str, dict[str, Evaluation]],
    metrics: list[dict[str, Any]],
    *,
    text: str,
    command: str,
    activation: str,
) -> str:
    """Return the card of a converted model, in Markdown.

    Args:
        name: the model's, its folder's.
        source: what was converted.
        losses: by text and model, the unconverted one first.
        metrics: the run's, one entry per step.
        text: what was trained on, in words.
        command: what makes it again.
        activation: the gate's, before.
    """
    loss = f"{config.kl_weight:g} KL(teacher || student)" if config.kl_weight else ""
    if config.next_token_weight:
        loss += f"{' + ' if loss else ''}{config.next_token_weight:g} next-token loss"
    scale = ", with a learned scale for every neuron," if config.learned_scale else ""
    tokens = config.n_steps * config.batch_size * config.window
    return f"""\
---
library_name: transformers
base_model: {source}
---
# {name}: {source}, made bilinear

Its MLPs have no activation function: `mlp(x) = down(gate(x) * up(x))`. Converted by `tl_bilinear`
from the {activation} gate of {source}, whose licence holds.

## Recipe

Method: arXiv:2410.08417, appendix J. The gate is act(beta g)/beta{scale} with beta from 1 to 0
({config.schedule}) over the first {config.anneal_fraction:.0%} of the steps; its factor is folded
at the end. Loss: {loss}; the teacher is the unconverted model.

- text: {text}
- {config.n_steps} steps of {config.batch_size} windows of {config.window} tokens, in all
  {tokens / 1e6:.2f} million; AdamW (weight decay {config.weight_decay:g}), learning rate
  {config.learning_rate:g} after {config.warmup_steps} steps, cosine to
  {config.final_learning_rate:g}, gradient norm cut to {config.clip_norm:g}, seed {config.seed}
- {metrics[-1]["seconds"] / 60:.1f} minutes on: {machine()}

```
{command}
```

## Losses on text that was not trained on

{loss_table(losses)}

While training, unfolded:

{curve_table(metrics, list(losses))}
"""
