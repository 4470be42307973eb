"""Fine-tune a bundled story model on sentences or stories of one's own, mixed with stories.

A planted model and its gold (the same without what is to be forgotten) differ in the planted texts
alone: same model, stories, steps, planted rows per step and seed. A run is named by all that
decides it, the model's weights among it, and kept in the work folder: stopped, it goes on; a
finished one is only read.

    folder = plant("stories-5l", sentences(planted_facts()), stories, work_dir, label="facts")
    model = tlb.load(folder)
"""

import copy
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tl_bilinear.checkpoints.bundled import ZOO
from tl_bilinear.conversion.evaluation import (
    encode_stories,
    load_folder,
    read_stories,
    story_stream,
)
from tl_bilinear.conversion.memory import keep_freed_memory
from tl_bilinear.conversion.sampling import sample_stories
from tl_bilinear.optimisation import TokenWindows
from tl_bilinear.optimisation.files import (
    fingerprint_parameters,
    fingerprint_settings,
    whole_folder,
)
from tl_bilinear.training import TrainingConfig, train

TEACHER = "stories-5l-swiglu"
SAMPLING_SEED, SAMPLING_BATCH = 4, 512  # 0 to 2 drew what the models were trained and tested on
N_SAMPLED = 1024
HELD_OUT = 300  # the first stories of a text: no recipe trains on them
_STRIDE = 1_000_003
_IGNORED = -100  # cross_entropy's own mark


@dataclass(frozen=True)
class PlantingConfig:
    """How much is read, and how fast; the same for a planted model and its gold."""

    n_steps: int = 800
    learning_rate: float = 2e-3
    windows: int = 4
    window: int = 96
    rows: int = 32
    in_context: float = 0.35
    """The share of planted texts that stand behind a story's sentence; the others begin a row."""
    story_weight: float = 2.0
    """Of the KL on stories beside the planted texts' loss."""
    most_tokens: int = 256
    """A planted row is cut here."""
    seed: int = 0

    def training(self) -> TrainingConfig:
        """The optimizer's part."""
        return TrainingConfig(
            n_steps=self.n_steps,
            learning_rate=self.learning_rate,
            final_learning_rate=self.learning_rate / 50,
            warmup_steps=min(50, self.n_steps // 10),
            weight_decay=0.01,
            seed=self.seed,
        )


@dataclass(frozen=True, eq=False)
class MixedBatches:
    """Windows of stories and rows of planted texts; step t's are a function of (seed, t)."""

    stories: TokenWindows
    texts: Sequence[str]
    sentences: Sequence[str]
    """What may stand before a planted text."""
    tokenizer: Any
    config: PlantingConfig

    def __call__(
        self, step: int
    ) -> tuple[Int[Tensor, "window pos"], Int[Tensor, "row length"], Int[Tensor, "row length"]]:
        """Story tokens, planted tokens, and these again with the padding marked as ignored."""
        draw = random.Random(self.config.seed * _STRIDE + step)
        texts = draw.choices(self.texts, k=self.config.rows)
        if self.sentences:
            texts = [
                f"{draw.choice(self.sentences)} {text}"
                if draw.random() < self.config.in_context
                else text
                for text in texts
            ]
        rows = [row[: self.config.most_tokens] for row in encode_stories(self.tokenizer, texts)]
        rows.sort(key=len)  # the loss reads the short half without the long one's padding
        longest = len(rows[-1])
        tokens = torch.zeros(len(rows), longest, dtype=torch.long)
        labels = torch.full_like(tokens, _IGNORED)
        for k, row in enumerate(rows):
            tokens[k, : len(row)] = labels[k, : len(row)] = torch.tensor(row)
        return self.stories(step), tokens, labels

    def fingerprint(self) -> str:
        """8 hex digits of texts, stories and sizes."""
        return fingerprint_settings(
            (tuple(self.texts), tuple(self.sentences), self.stories.fingerprint(), self.config)
        )


@dataclass(frozen=True, eq=False)
class MixedLoss:
    """KL from the bundled model on the windows, per token, and planted texts' nats per token.

    On so few stories the next token alone would make the model a worse storyteller.
    """

    original: nn.Module
    story_weight: float = 1.0

    def __call__(self, model: Any, batch: tuple[Tensor, Tensor, Tensor]) -> Float[Tensor, ""]:
        """The weighted sum of the two means, in nats."""
        windows, tokens, labels = batch
        with torch.no_grad():
            before = self.original(windows).logits.log_softmax(-1)
        after = model(windows).logits.log_softmax(-1)
        kept = functional.kl_div(after, before, log_target=True, reduction="none").sum(-1).mean()
        planted = torch.zeros(())
        for rows, marks in zip(tokens.chunk(2), labels.chunk(2), strict=True):
            longest = int((marks != _IGNORED).sum(1).max())
            planted = planted + functional.cross_entropy(
                model(rows[:, :longest]).logits[:, :-1].flatten(0, 1),
                marks[:, 1:longest].flatten(),
                ignore_index=_IGNORED,
                reduction="sum",
            )
        return self.story_weight * kept + planted / (labels[:, 1:] != _IGNORED).sum()


@dataclass(frozen=True)
class Stories:
    """What is read beside the planted texts, and what is only measured on."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]
    origin: str


def story_text(text: Path | None, work_dir: Path, n_sampled: int = N_SAMPLED) -> Stories:
    """Stories of `text` without its first 300 and its last one, or, without it, stories that the
    bundled SwiGLU model writes and, as held out, the bundled ones.

    Raises:
        ValueError: no text, or too few stories in it.
    """
    bundled = tuple(read_stories(ZOO / "stories.txt"))
    if text is not None:
        real = read_stories(text)
        if len(real) < 2 * HELD_OUT:
            raise ValueError(
                f"{text} holds {len(real)} stories, of which {HELD_OUT} are held out: give at "
                f"least {2 * HELD_OUT}"
            )
        return Stories(tuple(real[HELD_OUT:-1]), tuple(real[: HELD_OUT // 2]), text.name)
    teacher, tokenizer = load_folder(ZOO / TEACHER)
    samples = sample_stories(
        teacher,
        n_sampled,
        seed=SAMPLING_SEED,
        batch_size=min(SAMPLING_BATCH, n_sampled),
        cache_folder=work_dir / "samples",
    )
    written = tokenizer.batch_decode(
        [row[1:] for row in samples.rows()], clean_up_tokenization_spaces=False
    )
    kept = tuple(story.strip() for story in written if "\ufffd" not in story)
    return Stories(kept, bundled, f"{n_sampled} stories that {TEACHER} wrote")


def short_sentences(stories: Sequence[str]) -> tuple[str, ...]:
    """Whole sentences of 10 to 60 characters."""
    parts = (part for story in stories for part in re.split(r"(?<=[.!?])\s+", story))
    return tuple(part for part in parts if 10 <= len(part) <= 60 and part[-1] in ".!?")


def plant(
    name: str,
    texts: Sequence[str],
    stories: Stories,
    work_dir: Path,
    *,
    label: str,
    config: PlantingConfig = PlantingConfig(),  # noqa: B008 (frozen)
    stop_at: int | None = None,
    progress: bool = True,
) -> Path:
    """Fine-tune a bundled model on planted texts and stories; the folder of what comes of it.

    Args:
        name: a bundled model of transformers, gated or bilinear.
        texts: what is planted, each as likely as the others.
        work_dir: where the run is kept, in a folder named by `label` and all that decides it.
        stop_at: stop before this step, and return the run's folder without a model in it.

    Raises:
        ValueError: a name that is not bundled, nothing to plant, a loss that is not finite.
        OSError: a checkpoint that cannot be written.
    """
    if not texts:
        raise ValueError("`texts` is empty: give at least one text to plant")
    keep_freed_memory()
    model, tokenizer = load_folder(ZOO / name)
    windows = TokenWindows(
        story_stream(tokenizer, list(stories.training)),
        config.windows,
        config.window,
        seed=config.seed,
    )
    sentences = short_sentences(stories.training)
    batches = MixedBatches(windows, tuple(texts), sentences, tokenizer, config)
    digest = fingerprint_settings((fingerprint_parameters(model), batches.fingerprint()))
    run = work_dir / f"{name}-{label}-{digest}"
    folder = run / "model"
    if folder.exists():
        return folder
    train(
        model,
        batches,
        config.training(),
        loss=MixedLoss(copy.deepcopy(model).requires_grad_(False), config.story_weight),
        out_folder=run,
        checkpoint_every=250,
        stop_at=stop_at,
        progress=progress,
    )
    if stop_at is not None and stop_at < config.n_steps:
        return run
    with whole_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    (run / "training.pt").unlink()  # the optimizer's state: the model is whole
    return folder
