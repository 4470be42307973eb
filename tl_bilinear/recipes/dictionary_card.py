"""The card of the bundled dictionaries: what was done, with which command, and what came out."""

from dataclasses import dataclass
from pathlib import Path

from tl_bilinear.conversion.story_card import KNOWN_TEXTS, machine
from tl_bilinear.optimisation.files import sha256_of_file
from tl_bilinear.training import Fidelity, TopKConfig


@dataclass(frozen=True)
class Entry:
    """One dictionary: where it sits, how it does on held-out text, seconds of training."""

    name: str
    hook: str
    fidelity: Fidelity
    seconds: float


@dataclass(frozen=True)
class DictionaryCard:
    """What the card reports."""

    entries: tuple[Entry, ...]
    config: TopKConfig
    layer: int
    n_stories: int
    text: Path | None
    n_tokens: int
    n_held_out: int
    seconds: float


def card_text(card: DictionaryCard) -> str:
    """The card in Markdown."""
    config = card.config
    text = "" if card.text is None else f" --text ../shared/data/text/{card.text.name}"
    rows = []
    for entry in card.entries:
        f = entry.fidelity
        rows.append(
            f"| `{entry.name}` | `{entry.hook}` | {f.fvu:.4f} | {f.l0:.2f} | {f.dead:.3f} | "
            f"{f.loss:.4f} | {f.spliced:.4f} | {f.zeroed:.4f} | {f.recovered:.3f} |"
        )
    table = "\n".join(rows)
    tokens = card.entries[0].fidelity.tokens
    training = " and ".join(f"{entry.seconds:.0f}" for entry in card.entries)
    return f"""# Dictionaries around one MLP of stories-5l

Two sparse dictionaries of layer {card.layer}'s MLP: of the normalised stream that it reads (before
the norm's gain) and of its output. {config.n_features} features each, top-k with k = {config.k}, in
float16, in the SAELens layout: `tl_bilinear.checkpoints.dictionaries.load_dictionary(name)`. MIT,
as the model.

## On text that they were not trained on

The first {card.n_held_out} stories of `stories.txt`, {tokens} tokens, as stored (float16):

| name | hook | FVU | L0 | dead | loss | spliced | zeroed | recovered |
|---|---|---|---|---|---|---|---|---|
{table}

FVU: |x - x^|^2 over |x - mean|^2. L0: active features per token. Dead: share of the features that
none of these tokens activates. Losses in nats per token: of the model as it is, with the
dictionary's reconstruction spliced in at its hook, and with zero there. The first token of each
story is left as it is.

## Recipe

Gao et al., 2406.04093: top-k activation, decoder rows of norm one, encoder begun as the decoder's
transpose, an auxiliary loss for dead latents; Adam. The text is what the model itself writes, so
that anyone can repeat it, and where it lies at hand a sample of TinyStories{_known(card.text)}.

- {card.n_tokens} tokens: {_sources(card)}
- {config.n_steps} steps of {config.batch_size} tokens, with repetition; learning rate
  {config.learning_rate:g}, falling to zero over the last {config.decay:.0%}; auxiliary weight 1/32,
  a latent counts as dead after {config.dead_after} tokens; seed {config.seed}
- {training} seconds of training, {card.seconds / 60:.0f} minutes with sampling, reading and
  measuring (shared machine), on: {machine()}

```
python -m tl_bilinear.recipes.story_dictionaries --work-dir .cache/dictionaries \
--n-stories {card.n_stories} --layer {card.layer} --steps {config.n_steps} \
--seed {config.seed} --threads 1{text}
```

or `make dictionaries`.

## Why layer 2

The middle layer. In equal short runs (500 steps of 1,024 tokens on 115,511 tokens of the same
text, held-out FVU on 60 stories) the layers gave

| layer | 0 | 1 | 2 | 3 | 4 |
|---|---|---|---|---|---|
| FVU of the MLP's input | 0.036 | 0.067 | 0.096 | 0.110 | 0.135 |
| FVU of its output | 0.036 | 0.109 | 0.131 | 0.158 | 0.173 |

Layers 0 and 1 are easy because they are still close to the token; layer 2 is the last whose input
stays below 0.1.
"""


def _sources(card: DictionaryCard) -> str:
    own = f"{card.n_stories} stories that stories-5l wrote (temperature 1, seed 2)"
    if card.text is None:
        return own
    return f"{own} and the 600 after the first 150 of {card.text.name} (not shipped)"


def _known(text: Path | None) -> str:
    known = "" if text is None else KNOWN_TEXTS.get(sha256_of_file(text), "")
    return " ".join(known.split()).replace(": ", " (", 1) + ")" if known else ""
