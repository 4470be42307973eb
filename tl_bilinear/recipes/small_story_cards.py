"""What the small story models come to: the table of twins, and each bundled model's card."""

from collections.abc import Iterator, Sequence

from tl_bilinear.conversion.card import loss_table, machine
from tl_bilinear.conversion.evaluation import Evaluation
from tl_bilinear.recipes.interval import student_interval
from tl_bilinear.recipes.story_runs import BATCH, TOKENS_PER_STEP, WINDOW, StoryRun

Searched = dict[float, float]

LITERATURE = """\
The literature's differences (2410.08417, table 6; six layers, d_model 512, TinyStories, nats per
token of another tokenizer, equal epochs): bilinear 1.337, ReGLU 1.332 (-0.005), SwiGLU 1.321
(-0.016)."""


def runs_by_name(
    runs: Sequence[tuple[StoryRun, Searched]],
) -> dict[str, tuple[list[StoryRun], Searched]]:
    """Each model's runs, one per seed, with the losses that chose its learning rate."""
    found: dict[str, tuple[list[StoryRun], Searched]] = {}
    for run, searched in runs:
        found.setdefault(run.recipe.name, ([], searched))[0].append(run)
    return found


def twins_page(
    runs: Sequence[tuple[StoryRun, Searched]],
    others: dict[str, dict[str, Evaluation]],
    *,
    command: str,
    n_text: int,
    third_split: str,
) -> str:
    """The table of twins, in Markdown.

    Args:
        runs: all of them.
        others: losses on the same texts of models that were not trained here, by text and model.
        command: what writes this page.
        n_text: tokens of the training text.
        third_split: the text that learning rates were chosen on, left out.
    """
    by_name = runs_by_name(runs)
    first = runs[0][0].recipe
    texts = [name for name in others if name != third_split]
    seeds = sorted({run.recipe.seed for run, _ in runs})
    lines = [
        "# Bilinear models and their twins, in bits per byte",
        "",
        "```",
        command,
        "```",
        "",
        f"All of one size have the same number of weights and read the same {first.n_tokens:,} "
        f"tokens ({first.n_steps} steps of {BATCH} windows of {WINDOW}), drawn from a text of "
        f"{n_text:,}. Each has the best of {len(runs[0][1])} learning rates, chosen on stories "
        "that are in no other column, by shorter runs. Bits per byte, mean and half of Student's "
        f"95 % interval over seeds {', '.join(map(str, seeds))}; beside it the difference from "
        "the bilinear twin, seed by seed. Held-out stories, each cut at 800 characters.",
        "",
        "| model | weights | learning rate | "
        + " | ".join(f"{text} | minus bilinear" for text in texts)
        + " |",
        "|---|---:|---:|" + "---:|---:|" * len(texts),
    ]
    for model in next(iter(others.values())):
        cells = [f"{others[text][model].bits_per_byte:.4f} | " for text in texts]
        lines.append(f"| {model} | | | {' | '.join(cells)} |")
    for name, (each, _) in by_name.items():
        lines.append(_row(name, each, by_name[each[0].recipe.size.name][0], texts))
    few = first.n_tokens / n_text
    return "\n".join(
        [
            *lines,
            "",
            LITERATURE,
            "",
            f"These are small budgets: {few:.1f} readings of the text, and every curve was still "
            "falling. Differences at convergence may be others.",
            "",
            "## Learning rates: nats per token on the third split",
            "",
            *_rates(by_name),
            "",
            f"{machine()}.",
            "",
        ]
    )


def _row(
    name: str, runs: Sequence[StoryRun], bilinear: Sequence[StoryRun], texts: Sequence[str]
) -> str:
    cells = []
    for text in texts:
        bits = [run.losses[text].bits_per_byte for run in runs]
        base = {run.recipe.seed: run.losses[text].bits_per_byte for run in bilinear}
        less = [
            value - base[run.recipe.seed]
            for value, run in zip(bits, runs, strict=True)
            if run.recipe.seed in base
        ]
        several = len(bits) > 1
        cells.append(str(student_interval(bits)) if several else f"{bits[0]:.4f}")
        twin = runs[0].recipe.mlp != "bilinear"
        cells.append(str(student_interval(less)) if twin and len(less) > 1 else "")
    rate = runs[0].recipe.learning_rate
    return f"| {name} | {runs[0].n_weights:,} | {rate:g} | {' | '.join(cells)} |"


def _rates(by_name: dict[str, tuple[list[StoryRun], Searched]]) -> Iterator[str]:
    rates = list(next(iter(by_name.values()))[1])
    yield "| model | " + " | ".join(f"{rate:g}" for rate in rates) + " |"
    yield "|---|" + "---:|" * len(rates)
    for name, (_, searched) in by_name.items():
        best = min(searched, key=lambda rate: searched[rate])
        cells = [
            f"**{searched[rate]:.4f}**" if rate == best else f"{searched[rate]:.4f}"
            for rate in rates
        ]
        yield f"| {name} | {' | '.join(cells)} |"


_MLPS = {
    "bilinear": "bilinear MLPs (no activation function): `mlp(x) = down(gate(x) * up(x))`",
    "swiglu": "SwiGLU MLPs, a twin of the bilinear model",
    "relu": "ReLU MLPs of two matrices, a twin of the bilinear model",
    "gelu": "GELU MLPs of two matrices, a twin of the bilinear model",
}


def story_card(
    run: StoryRun, searched: Searched, *, command: str, text: str, sample: str, rounding: float
) -> str:
    """One bundled model's card, in Markdown.

    Args:
        searched: nats per token on the third split, by learning rate.
        text: what was trained on, in words.
        sample: greedy text.
        rounding: nats per token that rounding to bf16 cost, at most, over the texts.
    """
    recipe, training = run.recipe, run.recipe.training()
    shape = recipe.size.shape
    gated = recipe.mlp in ("bilinear", "swiglu")
    noise = (
        f"; Gaussian noise of {recipe.size.latent_noise:g} standard deviations at each MLP's input "
        "while training (2406.03947)"
        if recipe.size.latent_noise
        else ""
    )
    where = (
        "`tl_bilinear.load` opens it in TransformerLens, transformers as a `LlamaForCausalLM`"
        if gated
        else "transformers opens it as an `ArceeForCausalLM`, TransformerLens' bridge as well; "
        "`tl_bilinear.load` does not, since its MLPs have no gate"
    )
    rates = ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in searched.items())
    losses = {name: {recipe.name: each} for name, each in run.losses.items()}
    n_bytes = ", ".join(f"{name} {each.n_bytes:,}" for name, each in run.losses.items())
    layers = "one layer" if shape.n_layers == 1 else f"{shape.n_layers} layers"
    return f"""\
---
license: mit
library_name: transformers
---
# {recipe.name}: a small story model of {layers}

{layers.capitalize()} of attention ({shape.n_heads} heads, rotary positions) and
{_MLPS[recipe.mlp]};
d_model {shape.d_model}, d_mlp {run.model().config.intermediate_size}, RMSNorm, no biases, embedding
and unembedding of their own, {shape.d_vocab} tokens, context {shape.n_ctx}: {run.n_weights:,}
weights. {where}.

## Recipe

- text: {text}
- {recipe.n_steps} steps of {BATCH} windows of {WINDOW} tokens: {recipe.n_tokens:,} read; AdamW
  (weight decay {training.weight_decay:g}), learning rate {recipe.learning_rate:g} after
  {training.warmup_steps} steps, cosine to {training.final_learning_rate:g}, gradient norm cut to
  {training.clip_norm:g}, seed {recipe.seed}{noise}
- the learning rate is the best of three on stories that nothing else here uses, by runs of
  fewer steps (nats per token; {rates})
- {run.seconds / 60:.1f} minutes on: {machine()}
- stored in bf16, read in float32: rounding changes the losses below by {rounding:.4f} nats per
  token at most

```
{command}
```

The tokenizer (byte-level BPE) was trained on the same text. A space stands before the first word.

## Losses on text that was not trained on

Each story is cut at 800 characters and read from its own beginning. Beside the twins, with
intervals over three seeds: `benchmarks/twins.md` of the repository.

{loss_table(losses)}

Bytes: {n_bytes}.

## Licence

MIT. The text is the bundled SwiGLU model's own stories (MIT) and TinyStories V1 (Eldan and Li,
2305.07759; CDLA-Sharing-1.0); none of the latter is shipped.

## A greedy sample

```
{sample}
```

## Weaknesses

Trained for minutes ({recipe.n_tokens / TOKENS_PER_STEP:.0f} steps): it has learned which words
follow one another in simple stories and little more; stories lose their thread within a sentence.
Positions beyond {WINDOW} were never trained on. Off such text its behaviour is untrained.
"""
