"""The model card of `stories-5l`: what was done, with which command, and what came out."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from tl_bilinear.conversion.card import curve_table, loss_table, machine
from tl_bilinear.conversion.evaluation import Evaluation
from tl_bilinear.conversion.story_stages import FinishedStage
from tl_bilinear.optimisation.files import sha256_of_file

# where a text came from, by its sha256
KNOWN_TEXTS = {
    "5352b299dcb1a32898b2d779b145b5a05f3e1265953fd21c264c9f9f9c9ae33d": (
        ":\nTinyStories V1 (Eldan and Li, 2305.07759; licence CDLA-Sharing-1.0), the 2 MiB sample\n"
        "data/tinystories_sample.txt of github.com/gusjengis/toy-RNN, commit e4c7ff8b"
    ),
}


@dataclass(frozen=True)
class StoryCard:
    """What the card reports: `losses` by text and model, and the stages."""

    stages: tuple[FinishedStage, ...]
    losses: dict[str, dict[str, Evaluation]]
    text: Path | None
    held_out: Path | None
    n_held_out: int
    sample: str
    d_mlp: int
    n_weights: int

    def metrics(self) -> list[dict]:
        """The lines of every stage's metrics.jsonl, steps counted on and seconds added up."""
        lines: list[dict] = []
        for stage in self.stages:
            steps = lines[-1]["step"] + 1 if lines else 0
            seconds = lines[-1]["seconds"] if lines else 0.0
            for text in (stage.run / "metrics.jsonl").read_text().splitlines():
                line = json.loads(text)
                moved = {"step": line["step"] + steps, "seconds": line["seconds"] + seconds}
                lines.append({**line, **moved})
        return lines


def build_command(card: StoryCard) -> str:
    """Return the command that makes this model."""
    parts = ["python -m tl_bilinear.conversion.stories --work-dir .cache/models"]
    parts += [f"--stages {len(card.stages)} --threads {torch.get_num_threads()}"]
    parts += [f"--text {card.text}"] if card.text else []
    parts += [f"--held-out {card.held_out}"] if card.held_out not in (None, card.text) else []
    return " ".join(parts)


def card_text(card: StoryCard) -> str:
    """Return the whole card, in Markdown."""
    metrics = card.metrics()
    return "\n\n".join(
        [_head(card), _recipe(card, metrics[-1]), _losses(card, metrics), _tail(card)]
    )


def _head(card: StoryCard) -> str:
    return f"""\
---
license: mit
base_model: karpathy/tinyllamas (stories260K)
library_name: transformers
---
# stories-5l: a bilinear story model

A Llama whose MLPs have no activation function: `mlp(x) = down(gate(x) * up(x))`. 5 layers,
d_model 64, d_mlp {card.d_mlp} (the SwiGLU model: 172), 8 heads, 4 key-value heads, 512 tokens of
vocabulary and of context, tied embeddings, RMSNorm: {card.n_weights / 1000:.0f} thousand
parameters. transformers loads it as a `LlamaForCausalLM` with `hidden_act` "linear".

## Origin and licence

karpathy's `stories260K` of llama2.c (MIT; bundled as `stories-5l-swiglu`), made bilinear by
`tl_bilinear`. MIT, the text in LICENSE. **The pretraining set of the original is not stated by its
author** (its stories are like TinyStories): held-out text below was not trained on here, but may
have been in that set."""


def _recipe(card: StoryCard, last: dict) -> str:
    c = card.stages[0].stage.config
    text = "the SwiGLU model's own stories (temperature 1, seed 0)"
    if card.text is not None:
        text += (
            f" and {card.text.name} without its first {card.n_held_out} stories and its last one "
            "(none of that text is shipped)"
        )
    stages = "\n".join(_stage(stage, i) for i, stage in enumerate(card.stages))
    return f"""\
## Recipe

Method: Pearce et al., arXiv:2410.08417, appendix J. The gate is silu(beta g)/beta, beta goes
from 1 to 0 ({c.schedule}) over the first {c.anneal_fraction:.0%} of the first run's steps; at the
end of that run the factor 1/2 is folded into `gate_proj`. Ours: the loss is KL(teacher || student),
the teacher being the unconverted model, plus a part of the next-token loss.

- text: {text}
{stages}
- {last["seconds"] / 60:.0f} minutes of training (shared machine) on: {machine()}

```
{build_command(card)}
```"""


def _stage(finished: FinishedStage, index: int) -> str:
    stage, c = finished.stage, finished.stage.config
    tokens = c.n_steps * c.batch_size * c.window
    which = "then, already bilinear, " if index else ""
    if stage.d_mlp is not None:
        which = f"then, already bilinear and widened to {stage.d_mlp} neurons per layer, "
    read = f"{stage.n_stories} written stories"
    if stage.text_copies > 1:
        read += f" and {stage.text_copies} times the given text"
    return f"""\
- {which}{c.n_steps} steps of {c.batch_size} windows of {c.window} tokens: {tokens / 1e6:.1f}
  million tokens read out of {finished.n_tokens / 1e6:.1f} ({read}); KL plus
  {c.next_token_weight:g} of the next-token loss; AdamW (weight decay {c.weight_decay:g}), learning
  rate {c.learning_rate:g} after {c.warmup_steps} steps, cosine to {c.final_learning_rate:g},
  gradient norm cut to {c.clip_norm:g}, seed {c.seed}"""


def _losses(card: StoryCard, metrics: list[dict]) -> str:
    lines = [
        "## Losses on text that was not trained on",
        "Each story is read from its own beginning and cut at 512 tokens.",
        loss_table(card.losses),
        "While training (unfolded, the shipped text's first 100 stories):",
        curve_table(metrics, list(card.losses)),
    ]
    commands = [
        "python -m tl_bilinear.conversion.evaluation tl_bilinear/zoo/stories-5l "
        "--text tl_bilinear/zoo/stories.txt"
    ]
    if card.held_out is not None:
        commands.append(
            "python -m tl_bilinear.conversion.evaluation tl_bilinear/zoo/stories-5l "
            f"--text {card.held_out} --first {card.n_held_out}"
        )
        lines.append(
            f"{card.held_out.name} was not trained on, but its loss was looked at\n"
            "when the recipe was chosen."
        )
        digest = sha256_of_file(card.held_out)
        lines.append(
            f"{card.held_out.name}: the first {card.n_held_out} stories of a file with sha256\n"
            f"{digest}{KNOWN_TEXTS.get(digest, '')}."
        )
    lines.append("```\n" + "\n".join(commands) + "\n```")
    return "\n\n".join(lines)


def _tail(card: StoryCard) -> str:
    return f"""\
## A greedy sample

```
{card.sample}
```

## Weaknesses

Tiny: names and objects change within a story, plots go in circles, greedy text repeats itself.
The vocabulary has 512 tokens, so most words are several. It knows short English children's stories
and nothing else. Its behaviour off such text, as on tokens that never occur there, is untrained.
"""
