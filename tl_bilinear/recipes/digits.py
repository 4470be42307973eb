"""`digits`: a bilinear classifier of scikit-learn's 8x8 digits, and its card.

Three seeds are trained, each with its own split; the first is kept. Runs are kept in the work
folder; when stopped, the same command goes on.

    python -m tl_bilinear.recipes.digits --work-dir .cache/toys
"""

import gzip
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, cast

import torch
import typer
from jaxtyping import Float
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from tl_bilinear.one_line_errors import errors_in_one_line
from tl_bilinear.optimisation import ShuffledBatches
from tl_bilinear.optimisation.files import fingerprint_settings, replace_file
from tl_bilinear.recipes.toy_runs import seconds_of
from tl_bilinear.toys import BilinearClassifier, ClassifierConfig, Digits, save_toy
from tl_bilinear.toys.stored import TOYS
from tl_bilinear.training import TrainingConfig, train

NAME = "digits"
SEEDS = (0, 1, 2)
SOURCE = "sklearn/datasets/data/digits.csv.gz"

Noise = Literal["input", "latent", "both"]


@dataclass(frozen=True)
class DigitsRecipe:
    """How the classifier is made; checked on creation (ValueError).

    Attributes:
        noise_at: what gets the noise of `training.latent_noise`: the pixels ("input"), what the
            bilinear layer reads ("latent"), or both.
        training: its seed is replaced by each run's own.
    """

    model: ClassifierConfig = ClassifierConfig()  # noqa: RUF009 (frozen)
    batch_size: int = 128
    noise_at: Noise = "input"
    training: TrainingConfig = TrainingConfig(  # noqa: RUF009 (frozen)
        n_steps=1000, learning_rate=3e-3, weight_decay=0.3, latent_noise=0.5
    )

    def __post_init__(self):
        if self.noise_at not in ("input", "latent", "both"):
            raise ValueError(
                f'`noise_at` must be "input", "latent" or "both", got {self.noise_at!r}'
            )


RECIPE = DigitsRecipe()


@dataclass(frozen=True)
class DigitsRun:
    """One seed: accuracies, and seconds of training."""

    seed: int
    train: float
    test: float
    seconds: float


def class_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
    """Mean cross-entropy of (pictures, labels), in nats."""
    pictures, labels = batch
    return functional.cross_entropy(model(pictures), labels)


def train_digits(
    recipe: DigitsRecipe, seed: int, work_dir: Path
) -> tuple[BilinearClassifier, DigitsRun]:
    """Train with `seed` for weights, split, batches and noise; the run is kept in `work_dir`."""
    data = Digits(seed=seed)
    model = BilinearClassifier(recipe.model, seed=seed)
    places = {"input": [model], "latent": [model.mlp], "both": [model, model.mlp]}
    folder = work_dir / f"{NAME}-{fingerprint_settings(recipe)}-{seed}"
    train(
        model,
        ShuffledBatches(*data.part("train"), batch_size=recipe.batch_size, seed=seed),
        replace(recipe.training, seed=seed),
        loss=class_loss,
        noise_at=places[recipe.noise_at],
        out_folder=folder,
        checkpoint_every=recipe.training.n_steps,
    )
    measured = (data.accuracy(model, "train"), data.accuracy(model, "test"))
    return model.eval(), DigitsRun(seed, *measured, seconds_of(folder))


def build(
    work_dir: Path,
    *,
    toys: Path = TOYS,
    recipe: DigitsRecipe = RECIPE,
    seeds: tuple[int, ...] = SEEDS,
) -> tuple[DigitsRun, ...]:
    """Train each seed, write the first one's model and the card; return what was measured."""
    from tl_bilinear.recipes.toy_cards import digits_card

    runs = []
    for seed in seeds:
        model, run = train_digits(recipe, seed, work_dir)
        runs.append(run)
        if seed == seeds[0]:
            save_toy(model, toys / NAME, recipe=asdict(recipe), measured=asdict(run))
    replace_file(toys / NAME / "README.md", digits_card(recipe, tuple(runs)).encode())
    return tuple(runs)


def store_images(wheel: Path, toys: Path = TOYS) -> Path:
    """Take the pictures out of a wheel of scikit-learn, which is not installed for it.

    Raises:
        ValueError: a file that is no such wheel.
    """
    from safetensors.torch import save

    try:
        packed = zipfile.ZipFile(wheel).read(SOURCE)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{wheel} is no wheel of scikit-learn with {SOURCE}: {error}") from None
    lines = gzip.decompress(packed).decode("ascii").split()
    numbers = torch.tensor([[int(float(cell)) for cell in line.split(",")] for line in lines])
    tensors = {
        "images": numbers[:, :64].reshape(-1, 8, 8).to(torch.uint8),
        "labels": numbers[:, 64].to(torch.uint8),
    }
    path = toys / NAME / "images.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, save(tensors))
    return path


def _main(
    work_dir: Annotated[Path, typer.Option(help="Training states; resumes from here.")],
    toys: Annotated[Path, typer.Option(help="Where the toy models lie.")] = TOYS,
    steps: Annotated[int, typer.Option(help="Training steps.")] = RECIPE.training.n_steps,
    noise: Annotated[
        float, typer.Option(help="In standard deviations; 0 for none.")
    ] = RECIPE.training.latent_noise,
    noise_at: Annotated[str, typer.Option(help="input, latent or both.")] = RECIPE.noise_at,
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = RECIPE.training.weight_decay,
    wheel: Annotated[
        Path | None, typer.Option(help="Take the pictures from this wheel of scikit-learn anew.")
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of torch; 0 leaves the default.")] = 0,
) -> None:
    """Rebuild the bundled classifier of digits, without the network."""
    if threads:
        torch.set_num_threads(threads)
    with errors_in_one_line():
        if wheel is not None:
            store_images(wheel, toys)
        training = replace(
            RECIPE.training, n_steps=steps, latent_noise=noise, weight_decay=weight_decay
        )
        recipe = replace(RECIPE, noise_at=cast(Noise, noise_at), training=training)
        runs = build(work_dir, toys=toys, recipe=recipe)
    console = Console()
    for run in runs:
        console.print(f"seed {run.seed}: accuracy train {run.train:.4f}, test {run.test:.4f}")
    console.print(f"written: {toys / NAME}", soft_wrap=True)


if __name__ == "__main__":
    typer.run(_main)
