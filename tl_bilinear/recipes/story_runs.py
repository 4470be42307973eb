"""One training run of a small story model, and what it came to.

A run is named by all that decides it (size, MLP, learning rate, seed, tokens, text) and kept in a
folder of that name: run again, it goes on, and a finished one is only read.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from tl_bilinear.conversion.evaluation import Evaluation, evaluate
from tl_bilinear.optimisation import TokenWindows
from tl_bilinear.optimisation.files import (
    fingerprint_settings,
    fingerprint_tokens,
    replace_file,
)
from tl_bilinear.recipes.toy_runs import seconds_of
from tl_bilinear.training import MLP, Shape, TrainingConfig, fresh_model, train

CONTEXT, WINDOW, BATCH = 256, 128, 4
TOKENS_PER_STEP = WINDOW * BATCH


@dataclass(frozen=True)
class StorySize:
    """A bundled model and its twins: their shape, and the noise that they are trained with."""

    name: str
    shape: Shape
    latent_noise: float = 0.0


@dataclass(frozen=True)
class StoryRecipe:
    """All that decides one run, beside its text."""

    size: StorySize
    mlp: MLP
    learning_rate: float
    n_steps: int
    seed: int = 0

    @property
    def name(self) -> str:
        """The bundled model's name: the twins are called by their MLP."""
        return self.size.name + ("" if self.mlp == "bilinear" else f"-{self.mlp}")

    @property
    def n_tokens(self) -> int:
        """Tokens read, with repetition."""
        return self.n_steps * TOKENS_PER_STEP

    def training(self) -> TrainingConfig:
        """How it is trained."""
        return TrainingConfig(
            n_steps=self.n_steps,
            learning_rate=self.learning_rate,
            final_learning_rate=self.learning_rate / 50,
            warmup_steps=min(100, self.n_steps // 10),
            weight_decay=0.1,
            latent_noise=self.size.latent_noise,
            seed=self.seed,
        )


@dataclass(frozen=True, eq=False)
class StoryText:
    """What is trained on, and the texts that are only evaluated on, by name."""

    tokenizer: Any
    stream: Int[Tensor, " n_tokens"]
    held_out: dict[str, list[str]]
    """The first is the third split: learning rates are chosen on it."""


@dataclass(frozen=True)
class StoryRun:
    """A finished run: its losses by text, weights, seconds of training."""

    recipe: StoryRecipe
    losses: dict[str, Evaluation]
    n_weights: int
    seconds: float
    folder: Path = field(compare=False)

    def model(self) -> PreTrainedModel:
        """The trained model, from the run's folder."""
        model = fresh_model(self.recipe.size.shape, self.recipe.mlp, seed=self.recipe.seed)
        stored = torch.load(self.folder / "training.pt", weights_only=True)["model"]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(stored[name])
        return model.eval()


def run_story(recipe: StoryRecipe, text: StoryText, work_dir: Path) -> StoryRun:
    """Train one model, or read what it came to; the run is kept in `work_dir`.

    Raises:
        ValueError: a loss that is not finite.
        OSError: a checkpoint that cannot be written.
    """
    digest = fingerprint_settings((recipe, fingerprint_tokens(text.stream)))
    folder = work_dir / f"{recipe.name}-lr{recipe.learning_rate:g}-{recipe.seed}-{digest}"
    figures = folder / "figures.json"
    if not figures.exists():
        model = fresh_model(recipe.size.shape, recipe.mlp, seed=recipe.seed)
        batches = TokenWindows(text.stream, BATCH, WINDOW, seed=recipe.seed)
        train(model, batches, recipe.training(), out_folder=folder, checkpoint_every=500)
        losses = {
            name: asdict(evaluate(model, text.tokenizer, stories, max_tokens=CONTEXT))
            for name, stories in text.held_out.items()
        }
        found = {
            "losses": losses,
            "n_weights": sum(each.numel() for each in model.parameters()),
            "seconds": seconds_of(folder),
        }
        replace_file(figures, json.dumps(found, indent=1).encode())
    found = json.loads(figures.read_text(encoding="utf-8"))
    losses = {name: Evaluation(**each) for name, each in found["losses"].items()}
    return StoryRun(recipe, losses, found["n_weights"], found["seconds"], folder)
