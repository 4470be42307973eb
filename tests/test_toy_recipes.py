"""The recipes of the toy models: they learn, resume, and write what the package reads."""

import gzip
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tl_bilinear.recipes import digits, modular
from tl_bilinear.toys import (
    Digits,
    ModularConfig,
    ModularModel,
    ModularTask,
    load_classifier,
    load_modular,
)
from tl_bilinear.toys.stored import TOYS, read_safetensors
from tl_bilinear.training import TrainingConfig

pytestmark = pytest.mark.one_major(4)


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    return tmp_path / "toys"


def small_table(steps: int = 40) -> list[modular.ModularRecipe]:
    training = TrainingConfig(n_steps=steps, learning_rate=3e-2, warmup_steps=1)
    return [
        modular.ModularRecipe(
            ModularTask(5, seed=seed),
            ModularConfig(5, activation=activation, d_model=6, d_mlp=8),
            training,
            seed,
        )
        for seed in (0, 1)
        for activation in ("bilinear", "relu")
    ]


def test_digits_learn_resume_and_are_stored(toys: Path, tmp_path: Path):
    training = replace(digits.RECIPE.training, n_steps=60, warmup_steps=5, learning_rate=1e-2)
    recipe = replace(digits.RECIPE, noise_at="both", training=training)
    runs = digits.build(tmp_path / "work", toys=toys, recipe=recipe, seeds=(3, 4))
    assert [run.seed for run in runs] == [3, 4] and all(run.test > 0.8 for run in runs)
    model = load_classifier(toys / "digits")
    assert Digits(seed=3).accuracy(model) == runs[0].test
    assert f"| 4 | {runs[1].train:.4f}" in (toys / "digits" / "README.md").read_text()
    again = digits.build(tmp_path / "work", toys=toys, recipe=recipe, seeds=(3, 4))
    assert again == runs


def test_the_shipped_pictures_are_those_of_the_wheel(toys: Path, tmp_path: Path):
    stored = read_safetensors(TOYS / "digits" / "images.safetensors", ("images", "labels"))
    rows = torch.cat([stored["images"].flatten(1), stored["labels"][:, None]], dim=1)[:20]
    lines = "".join(",".join(f"{int(v)}.0e0" for v in row) + "\n" for row in rows)
    wheel = tmp_path / "scikit_learn.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(digits.SOURCE, gzip.compress(lines.encode()))
    made = read_safetensors(digits.store_images(wheel, toys), ("images", "labels"))
    assert torch.equal(made["images"], stored["images"][:20])
    assert torch.equal(made["labels"], stored["labels"][:20])
    wheel.write_bytes(b"not a zip")
    with pytest.raises(ValueError, match="is no wheel of scikit-learn"):
        digits.store_images(wheel, toys)


def test_modular_models_learn_resume_and_are_stored(toys: Path, tmp_path: Path):
    table = small_table()
    runs = modular.build(tmp_path / "work", table, toys=toys)
    assert len(runs) == 4 and len({run.n_weights for run in runs}) == 1
    assert all(value > 0.5 for run in runs for value in run.train.values())
    assert {path.name for path in (toys / "mod-p").iterdir()} == {
        "README.md",
        "add-mul-heads-bilinear",
    }
    model, task = load_modular(toys / "mod-p" / "add-mul-heads-bilinear")
    assert task == table[0].task
    assert task.accuracy(model(task.pairs).detach(), "train") == runs[0].train
    for folder in (tmp_path / "work").iterdir():  # every architecture, for whoever wants it
        assert load_modular(folder)[1].p == 5
    card = (toys / "mod-p" / "README.md").read_text(encoding="utf-8")
    assert card.count("| heads | add + mul | ") == 2
    assert modular.build(tmp_path / "work", table, toys=toys) == runs


def test_a_stopped_run_ends_as_a_whole_one(tmp_path: Path):
    from tl_bilinear.training import train

    recipe = small_table(20)[0]
    batches = modular.AllPairs(recipe.task)
    whole, _ = modular.train_modular(recipe, tmp_path / "whole")
    parts = None
    for stop in (7, None):
        parts = train(
            ModularModel(recipe.model, seed=recipe.seed),
            batches,
            recipe.training,
            loss=modular.trained_pairs_loss,
            out_folder=tmp_path / "parts",
            stop_at=stop,
            progress=False,
        )
    assert parts is not None and torch.equal(whole.W_U, parts.W_U)


def test_the_loss_sees_training_pairs_alone():
    task = ModularTask(5)
    logits = 50.0 * torch.nn.functional.one_hot(task.targets, 5).double()
    logits[task.part("test")] *= -1

    class Fixed(ModularModel):
        def forward(self, pairs):
            return logits

    model = Fixed(ModularConfig(5))
    assert modular.trained_pairs_loss(model, modular.AllPairs(task)(0)) < 1e-9
    logits[task.part("train")] *= -1
    assert modular.trained_pairs_loss(model, modular.AllPairs(task)(0)) > 50


def test_the_table_has_every_architecture_pair_form_and_seed():
    table = list(modular.recipes(head_seeds=(0, 1), token_seeds=(0,)))
    assert len(table) == 6 * 2 * 3
    assert {recipe.task.seed for recipe in table} == {0, 1}
    assert len({(recipe.name, recipe.seed) for recipe in table}) == len(table)


@pytest.mark.parametrize("recipe", [digits, modular])
def test_bad_input_is_one_line(recipe, tmp_path: Path, unchecked):
    import typer

    app = typer.Typer()
    app.command()(recipe._main)
    (tmp_path / "file").touch()
    arguments = ["--work-dir", str(tmp_path / "file"), "--toys", str(tmp_path / "toys")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1 and "nothing can be written to" in done.stderr
    arguments += ["--p", "6"] if recipe is modular else ["--noise-at", "head"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1 and ("prime" in done.stderr or "noise_at" in done.stderr)
