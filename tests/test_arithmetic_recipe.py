"""The experiment on entangled arithmetic as a whole: trained stacks, records, page, resumption."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from tl_bilinear.recipes import unlearning_arithmetic
from tl_bilinear.recipes.arithmetic import study
from tl_bilinear.recipes.arithmetic.models import Kind, kinds, trained
from tl_bilinear.recipes.arithmetic.results import cell
from tl_bilinear.recipes.modular import train_modular
from tl_bilinear.recipes.modular_stack import ModularStack, train_stack
from tl_bilinear.toys import ModularModel
from tl_bilinear.views import interval_figure

pytestmark = pytest.mark.one_major(4)


def small_recipe(form, activation, seed, steps=6):
    recipe = Kind(("add", "sub"), form, activation, "generalising").recipe(seed, p=5, steps=steps)
    layers = recipe.model.n_layers
    return replace(recipe, model=replace(recipe.model, d_model=6, d_mlp=8, n_layers=layers))


@pytest.mark.parametrize("form", ["heads", "token"])
@pytest.mark.parametrize("activation", ["bilinear", "relu"])
def test_a_stack_is_its_models(form, activation, tmp_path: Path):
    """Logits at the start, and weights after some steps, beside each model trained alone."""
    recipes = [small_recipe(form, activation, seed) for seed in (0, 3)]
    models = [ModularModel(each.model, seed=each.seed) for each in recipes]
    logits = ModularStack(models)()
    for index, (recipe, model) in enumerate(zip(recipes, models, strict=True)):
        torch.testing.assert_close(logits[index], model(recipe.task.pairs), rtol=1e-4, atol=1e-5)
    stacked = train_stack(recipes, tmp_path / "stack")
    for recipe, (model, run) in zip(recipes, stacked, strict=True):
        alone, run_alone = train_modular(recipe, tmp_path / "alone")
        for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        assert run.train == run_alone.train and run.recipe == recipe
    start = ModularModel(recipes[0].model, seed=0)
    assert (start.W_U - stacked[0][0].W_U).abs().max() > 0.01  # it was trained


def test_stacks_refuse_what_differs_and_what_clips(tmp_path: Path):
    recipes = [small_recipe("heads", "bilinear", seed) for seed in (0, 1)]
    for changed in (
        small_recipe("heads", "bilinear", 1, steps=7),
        replace(recipes[1], training=replace(recipes[1].training, clip_norm=1.0)),
    ):
        with pytest.raises(ValueError, match="differ in their seed alone"):
            train_stack([recipes[0], changed], tmp_path)
    with pytest.raises(ValueError, match="of one configuration"):
        ModularStack([])


def test_every_kind_is_there_once():
    every = list(kinds())
    assert len({each.name for each in every}) == len(every) == 2 * 2 * 6 * 2
    decays = {kind.version: kind.training.weight_decay for kind in every}
    assert decays["memorising"] < 0.1 < decays["generalising"]
    assert len({kind.recipe(seed) for kind in every for seed in range(5)}) == 240


def test_the_experiment_resumes_and_writes_its_page(tmp_path: Path, monkeypatch, unchecked):
    # Without shape checks, which test_arithmetic.py has: thousands of passes in a few seconds.
    monkeypatch.setattr(study, "DRAWS", 1)
    monkeypatch.setattr(study, "SHRINKAGES", (0.01,))
    table = [
        Kind(("add", "mul"), "heads", "bilinear", "generalising"),
        Kind(("add", "sub"), "token", "bilinear", "generalising"),
        Kind(("add", "sub"), "heads", "tanh", "generalising"),
    ]
    more = Kind(("add", "mul"), "heads", "relu", "memorising")
    settings: dict[str, Any] = dict(seeds=(0,), p=5, steps=40)
    results = unlearning_arithmetic.build(tmp_path, table, **settings)
    resumed = unlearning_arithmetic.build(tmp_path, [*table, more], train=False, **settings)
    assert resumed.records == results.records and resumed.missing == (more,)
    output = tmp_path / "page.md"
    unlearning_arithmetic.write(resumed, output)
    page = output.read_text(encoding="utf-8")
    assert page.count("\n| bilinear | add |") == 2 and page.count("\n| tanh | sub |") == 1
    assert "without 1 kinds" in page and "matched" not in page.split("## Claims")[0]
    for claim in ("by at most 5 modes", "harder aim", "What is left", "2602.05635"):
        assert claim in page
    assert output.with_suffix(".svg").read_text(encoding="utf-8").count("<svg") == 1
    assert max(map(len, (line for line in page.splitlines() if line[:1] not in "|-#!"))) <= 100
    # A record of another model is not taken for this one's.
    record = next(tmp_path.glob("study-*heads*-0-add.json"))
    record.write_text(record.read_text().replace('"model": "', '"model": "0'), encoding="utf-8")
    model = trained(table[0], tmp_path, (0,), p=5, steps=40)[0]
    first = results.records[table[0]][0]
    again = study.studied(model, 0, tmp_path)
    assert replace(again, seconds=0.0) == replace(first, seconds=0.0)
    assert again.seconds > 0 and results.measuring_seconds > first.seconds > 0
    assert results.training_seconds > 0 and "minutes by the clock" in " ".join(page.split())
    assert '"model": "0' not in record.read_text(encoding="utf-8")


def test_cells():
    assert cell([0.5]) == "0.50" and cell([0.996]) == "0.996" and cell([1.0, 1.0]) == "1.00 ± 0.00"
    assert cell([0.2, 0.4]) == "0.30 ± 1.27"  # Student's t of two values


def test_figures_of_nothing_are_refused():
    with pytest.raises(ValueError, match="empty"):
        interval_figure({}, "accuracy")
    many = {str(i): (0.5, 0.1) for i in range(8)}
    with pytest.raises(ValueError, match="8 series"):
        interval_figure({"panel": {"row": many}}, "accuracy")


def test_bad_input_is_one_line(tmp_path: Path, unchecked):
    app = typer.Typer()
    app.command()(unlearning_arithmetic._main)
    arguments = ["--work-dir", str(tmp_path), "-o", str(tmp_path / "page.md"), "--no-train"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1 and "no model is trained yet" in done.stderr
    assert not (tmp_path / "page.md").exists()
