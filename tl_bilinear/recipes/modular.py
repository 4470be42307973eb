"""`mod-p`: two operations modulo a prime on shared weights, in six architectures.

Each of two pairs of operations (a + b with a b, and with a - b) in two forms ("heads" and
"token"), bilinear, SwiGLU, GeGLU, ReLU, Tanh and Sigmoid at equal parameters. Every model goes to
the work folder, from which `load_modular` reads it; the bilinear ones of the first seed go into the
zoo, with the card. Runs are kept; when stopped, the same command goes on.

    python -m tl_bilinear.recipes.modular --work-dir .cache/toys
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from jaxtyping import Float
from rich.console import Console
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from tl_bilinear.one_line_errors import errors_in_one_line
from tl_bilinear.optimisation.files import fingerprint_settings, replace_file
from tl_bilinear.recipes.toy_runs import seconds_of
from tl_bilinear.toys import (
    ACTIVATIONS,
    Activation,
    ModularConfig,
    ModularModel,
    ModularTask,
    Operation,
    save_toy,
)
from tl_bilinear.toys.modular_model import Form
from tl_bilinear.toys.stored import TOYS
from tl_bilinear.training import TrainingConfig, train

NAME = "mod-p"
PAIRS: tuple[tuple[Operation, Operation], ...] = (("add", "mul"), ("add", "sub"))
HEAD_SEEDS, TOKEN_SEEDS = (0, 1, 2), (0,)


@dataclass(frozen=True)
class ModularRecipe:
    """How one model is made: all training pairs at each step; the seed is of the weights."""

    task: ModularTask
    model: ModularConfig
    training: TrainingConfig
    seed: int = 0

    @property
    def name(self) -> str:
        """As "add-mul-heads-bilinear", the folder's name."""
        return "-".join([*self.task.operations, self.model.form, self.model.activation])


@dataclass(frozen=True)
class ModularRun:
    """What one run came to: accuracies by operation, weights, seconds of training."""

    recipe: ModularRecipe
    train: dict[str, float]
    test: dict[str, float]
    n_weights: int
    seconds: float


_HEADS = TrainingConfig(
    n_steps=1500, learning_rate=1e-2, weight_decay=1.0, beta2=0.98, warmup_steps=10, clip_norm=None
)
TRAINING: dict[Form, TrainingConfig] = {
    "heads": _HEADS,
    "token": replace(_HEADS, n_steps=2000, weight_decay=2.0),
}


def recipes(
    *,
    p: int = 31,
    forms: Sequence[Form] = ("heads", "token"),
    activations: Sequence[Activation] = ACTIVATIONS,
    head_seeds: Sequence[int] = HEAD_SEEDS,
    token_seeds: Sequence[int] = TOKEN_SEEDS,
) -> Iterator[ModularRecipe]:
    """Every recipe of the table, the first seeds first."""
    seeds_of: dict[Form, Sequence[int]] = {"heads": head_seeds, "token": token_seeds}
    for form in forms:
        for seed in seeds_of[form]:
            for operations in PAIRS:
                for activation in activations:
                    width, layers = (80, 1) if form == "heads" else (48, 2)
                    yield ModularRecipe(
                        ModularTask(p, operations, seed=seed),
                        ModularConfig(p, 2, form, activation, d_mlp=width, n_layers=layers),
                        TRAINING[form],
                        seed,
                    )


@dataclass(frozen=True)
class AllPairs:
    """The same batch at every step: all pairs with their targets, and which are trained on."""

    task: ModularTask

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.task.pairs, self.task.targets, self.task.trained

    def fingerprint(self) -> str:
        return repr(self.task)


def trained_pairs_loss(
    model: ModularModel, batch: tuple[Tensor, Tensor, Tensor]
) -> Float[Tensor, ""]:
    """Mean cross-entropy over the training pairs of all operations, in nats."""
    pairs, targets, trained = batch
    return functional.cross_entropy(model(pairs)[trained], targets[trained])


def train_modular(recipe: ModularRecipe, work_dir: Path) -> tuple[ModularModel, ModularRun]:
    """Train one model; run and model are kept in `work_dir`."""
    model = ModularModel(recipe.model, seed=recipe.seed)
    folder = work_dir / f"{NAME}-{recipe.name}-{recipe.seed}-{fingerprint_settings(recipe)}"
    train(
        model,
        AllPairs(recipe.task),
        replace(recipe.training, seed=recipe.seed),
        loss=trained_pairs_loss,
        out_folder=folder,
        checkpoint_every=1000,
        progress=False,
    )
    model.eval()
    run = measured(recipe, model, seconds_of(folder))
    _store(model, run, folder)
    return model, run


def measured(recipe: ModularRecipe, model: ModularModel, seconds: float) -> ModularRun:
    """Accuracies of a trained model, over all pairs of each part."""
    with torch.no_grad():
        logits = model(recipe.task.pairs)
    return ModularRun(
        recipe,
        train=recipe.task.accuracy(logits, "train"),
        test=recipe.task.accuracy(logits, "test"),
        n_weights=sum(each.numel() for each in model.parameters()),
        seconds=seconds,
    )


def build(
    work_dir: Path,
    table: Sequence[ModularRecipe],
    *,
    toys: Path = TOYS,
) -> tuple[ModularRun, ...]:
    """Train every recipe; write the bilinear models of seed 0 and the card; return the figures."""
    from tl_bilinear.recipes.toy_cards import modular_card

    runs = []
    for recipe in tqdm(table, desc=NAME, unit="model"):
        model, run = train_modular(recipe, work_dir)
        runs.append(run)
        if recipe.model.activation == "bilinear" and recipe.seed == 0:
            _store(model, run, toys / NAME / recipe.name)
    replace_file(toys / NAME / "README.md", modular_card(tuple(runs)).encode())
    return tuple(runs)


def _store(model: ModularModel, run: ModularRun, folder: Path) -> None:
    save_toy(
        model,
        folder,
        task=run.recipe.task,
        recipe=asdict(run.recipe.training) | {"seed": run.recipe.seed},
        measured={"train": run.train, "test": run.test, "seconds": run.seconds},
    )


def _main(
    work_dir: Annotated[Path, typer.Option(help="Runs and models; resumes from here.")],
    toys: Annotated[Path, typer.Option(help="Where the bundled toy models lie.")] = TOYS,
    p: Annotated[int, typer.Option(help="The modulus, a prime.")] = 31,
    head_seeds: Annotated[int, typer.Option(help="Seeds of the form with two heads.")] = 3,
    token_seeds: Annotated[int, typer.Option(help="Seeds of the form with a task token.")] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads of torch; 0 leaves the default.")] = 0,
) -> None:
    """Rebuild the models of arithmetic modulo a prime, without the network."""
    if threads:
        torch.set_num_threads(threads)
    with errors_in_one_line():
        table = recipes(p=p, head_seeds=range(head_seeds), token_seeds=range(token_seeds))
        runs = build(work_dir, list(table), toys=toys)
    console = Console()
    for run in runs:
        test = ", ".join(f"{op} {value:.3f}" for op, value in run.test.items())
        console.print(f"{run.recipe.name}, seed {run.recipe.seed}: test {test}", soft_wrap=True)
    console.print(f"written: {toys / NAME}", soft_wrap=True)


if __name__ == "__main__":
    typer.run(_main)
