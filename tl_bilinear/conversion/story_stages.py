"""The runs that `stories-5l` is made by, one after another."""

from dataclasses import dataclass
from pathlib import Path

from tl_bilinear.conversion.distillation import DistillationConfig

N_STORIES = 2560


@dataclass(frozen=True)
class Stage:
    """One run of the recipe, from the end of the one before.

    Its text: `n_stories` stories that the teacher writes, and `text_copies` times the given text.
    Before it, the model is widened to `d_mlp` neurons per layer, if that is not None.
    """

    config: DistillationConfig
    n_stories: int = N_STORIES
    text_copies: int = 1
    d_mlp: int | None = None


# After the conversion itself: at half the rate, on twice the text per step; then wider and long, on
# three times the stories, in windows of 128 tokens, which are read fast; at last on whole stories.
STAGES = (
    Stage(DistillationConfig(n_steps=3600, batch_size=8, next_token_weight=0.2)),
    Stage(
        DistillationConfig(
            n_steps=2600, batch_size=16, learning_rate=1e-3, next_token_weight=0.2, seed=1
        )
    ),
    Stage(
        DistillationConfig(
            n_steps=10000,
            batch_size=16,
            window=128,
            learning_rate=1e-3,
            final_learning_rate=1e-4,
            next_token_weight=0.1,
            seed=2,
        ),
        n_stories=7680,
        text_copies=3,
        d_mlp=256,
    ),
    Stage(
        DistillationConfig(
            n_steps=1200,
            batch_size=8,
            window=512,
            learning_rate=5e-4,
            next_token_weight=0.1,
            seed=3,
        ),
        n_stories=7680,
        text_copies=3,
    ),
    Stage(
        DistillationConfig(
            n_steps=3000,
            batch_size=8,
            window=512,
            learning_rate=3e-4,
            next_token_weight=0.1,
            seed=4,
        ),
        n_stories=7680,
        text_copies=3,
    ),
)


@dataclass(frozen=True)
class FinishedStage:
    """A stage with its run's folder, and how many tokens its text had."""

    stage: Stage
    run: Path
    n_tokens: int
