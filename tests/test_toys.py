"""Toy models: a module equals its tensor, data and splits, files, and the shipped accuracies."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tl_bilinear as tlb
from tl_bilinear.checkpoints.error import CheckpointError
from tl_bilinear.toys import (
    ACTIVATIONS,
    MLP,
    BilinearClassifier,
    ClassifierConfig,
    Digits,
    ModularConfig,
    ModularModel,
    ModularTask,
    bundled_toys,
    load_classifier,
    load_modular,
    save_toy,
)
from tl_bilinear.toys.modular_model import Form
from tl_bilinear.toys.stored import TOYS, read_config

assert_exact = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
MODULAR = [name for name in bundled_toys() if name.startswith("mod-p/")]
sizes = st.integers(1, 9)


@given(n_pixels=sizes, d_model=sizes, d_mlp=sizes, n_classes=sizes, seed=st.integers(0, 99))
def test_a_classifier_is_its_tensor(n_pixels, d_model, d_mlp, n_classes, seed):
    config = ClassifierConfig(n_pixels, n_classes, d_model, d_mlp)
    model = BilinearClassifier(config, seed=seed).double()
    x = torch.randn(3, n_pixels, dtype=torch.float64)
    tensor = model.tensor()
    assert (tensor.d_in, tensor.d_out, tensor.rank) == (n_pixels, n_classes, d_mlp)
    assert_exact(tensor(x), model(x).detach())
    dense = torch.einsum("oij,bi,bj->bo", tensor.to_dense(), x, x)
    assert_exact(dense, model(x).detach())


def test_a_model_of_two_heads_is_its_tensor():
    task = ModularTask(p=5)
    model = ModularModel(ModularConfig(p=5, d_model=6, d_mlp=8), seed=1).double()
    logits = model.tensor()(model.one_hot(task.pairs))  # operation * p + answer
    expected = model(task.pairs).detach()
    assert_exact(logits.unflatten(-1, (2, 5)).transpose(0, 1), expected)
    stream = model.run_layer(0, model.embed(task.pairs))[0]
    for operation in (0, 1):
        assert_exact((stream @ model.unembedding(operation)).detach(), expected[operation])


def test_a_token_model_is_its_layers_tensors_on_a_residual_stream():
    task = ModularTask(p=5, operations=("add", "sub"))
    config = ModularConfig(p=5, form="token", d_model=6, d_mlp=8, n_layers=2)
    model = ModularModel(config).double()
    for operation in (0, 1):
        a, b = task.pairs.unbind(-1)
        stream = (model.W_a[a] + model.W_b[b] + model.W_task[operation]).detach()
        for layer in (0, 1):
            stream = stream + model.mlp_tensor(layer)(stream)
        assert_exact((stream @ model.W_U).detach(), model(task.pairs)[operation].detach())
    with pytest.raises(ValueError, match=r"no single bilinear tensor.*mlp_tensor\(layer\)"):
        model.tensor()
    with pytest.raises(ValueError, match="layer 2 of a model with 2"):
        model.mlp_tensor(2)


@pytest.mark.parametrize("form", ["heads", "token"])
def test_architectures_have_equal_parameters_and_only_the_bilinear_one_is_a_tensor(form: Form):
    counts = set()
    for activation in ACTIVATIONS:
        model = ModularModel(ModularConfig(p=5, form=form, activation=activation))
        counts.add(sum(each.numel() for each in model.parameters()))
        if activation != "bilinear":
            with pytest.raises(ValueError, match=f"only a bilinear MLP.*{activation}"):
                model.mlp_tensor(0)
    assert len(counts) == 1


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("bilinear", lambda g, x: g * x),
        ("swiglu", lambda g, x: g / (1 + (-g).exp()) * x),
        ("geglu", lambda g, x: g * torch.erfc(-g / 2**0.5) / 2 * x),
        ("relu", lambda g, x: x * (x > 0)),
        ("tanh", lambda g, x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp())),
        ("sigmoid", lambda g, x: 1 / (1 + (-x).exp())),
    ],
)
def test_activations_are_what_they_are_called(activation, expected):
    mlp = MLP(4, 5, 3, activation).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    gate = x @ (mlp.W_in if mlp.W_gate is None else mlp.W_gate)
    hidden = expected(gate, x @ mlp.W_in)
    assert_exact(mlp.hidden(x), hidden)
    assert_exact(mlp(x), hidden @ mlp.W_out)


def test_the_weights_follow_the_seed_and_leave_the_generator_alone():
    state = torch.get_rng_state()
    one, two = (ModularModel(ModularConfig(p=5), seed=3) for _ in range(2))
    other = ModularModel(ModularConfig(p=5), seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.W_U, two.W_U) and not torch.equal(one.W_U, other.W_U)


def test_a_task_has_the_right_answers_and_a_split_by_seed():
    task = ModularTask(p=7, operations=("add", "sub", "mul"), train_share=0.6, seed=1)
    for k, (a, b) in enumerate(task.pairs.tolist()):
        assert task.targets[:, k].tolist() == [(a + b) % 7, (a - b) % 7, (a * b) % 7]
    train, test = task.part("train"), task.part("test")
    assert train.sum(1).tolist() == [29] * 3  # of 49
    assert torch.equal(train, ~test) and task.part("all").all()
    assert not torch.equal(train[0], train[1])
    assert torch.equal(train, replace(task).trained)
    assert not torch.equal(train, replace(task, seed=2).trained)


def test_accuracy_counts_each_operation_and_part_apart():
    task = ModularTask(p=7)
    logits = torch.nn.functional.one_hot(task.targets, 7).double()
    wrong = task.part("test")[1].nonzero()[:3, 0]
    logits[1, wrong] = -logits[1, wrong]
    n_test = int(task.part("test")[1].sum())
    assert task.accuracy(logits, "train") == {"add": 1.0, "mul": 1.0}
    assert task.accuracy(logits) == {"add": 1.0, "mul": pytest.approx(1 - 3 / n_test)}


def test_digits_are_pictures_with_a_split_by_seed():
    data = Digits()
    assert data.images.shape == (1797, 64) and (data.images.min(), data.images.max()) == (0, 1)
    assert torch.bincount(data.labels).tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
    ]  # fmt: skip
    expected = torch.randperm(1797, generator=torch.Generator().manual_seed(0))[:360]
    assert torch.equal(data.held_out.nonzero()[:, 0], expected.sort().values)
    images, labels = data.part("train")
    assert len(images) == len(labels) == 1437 and len(data.part("all")[0]) == 1797
    assert not torch.equal(data.held_out, Digits(seed=1).held_out)
    # the first picture, a nought, from scikit-learn's own listing of it
    assert (data.images[0, :8] * 16).tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    assert data.labels[0] == 0


def test_the_shipped_classifier_is_as_good_as_its_card_says():
    config = read_config("digits")
    model, data = load_classifier(), Digits(seed=config["measured"]["seed"])
    for part in ("train", "test"):
        assert data.accuracy(model, part) == pytest.approx(config["measured"][part], abs=1e-9)
    card = (TOYS / "digits" / "README.md").read_text(encoding="utf-8")
    assert f"| {data.accuracy(model, 'train'):.4f} | {data.accuracy(model, 'test'):.4f} |" in card
    assert data.accuracy(model) > 0.97
    kept = tlb.eigendecompose(model.tensor(), torch.eye(10)).truncate(12)
    images, labels = data.part("test")
    scores = (images @ kept.eigenvectors.mT) ** 2 * kept.eigenvalues[:, None]
    right = (scores.sum(-1).argmax(0) == labels).double().mean()
    assert right == pytest.approx(data.accuracy(model), abs=0.01)


@pytest.mark.parametrize("name", MODULAR)
def test_shipped_modular_models_are_as_good_as_their_card_says(name):
    model, task = load_modular(name)
    with torch.no_grad():
        logits = model(task.pairs)
    measured = read_config(name)["measured"]
    for part in ("train", "test"):
        assert task.accuracy(logits, part) == pytest.approx(measured[part], abs=1e-9)
    assert min(task.accuracy(logits, "train").values()) > 0.99
    card = (TOYS / "mod-p" / "README.md").read_text(encoding="utf-8")
    line = next(line for line in card.splitlines() if line.startswith(f"- `{name}`"))
    test = ", ".join(f"{op} {value:.3f}" for op, value in task.accuracy(logits).items())
    assert line.endswith(test)


def test_the_zoo_holds_both_pairs_in_both_forms_and_is_small():
    assert {name.split("/")[1] for name in MODULAR} == {
        f"{pair}-{form}-bilinear" for pair in ("add-mul", "add-sub") for form in ("heads", "token")
    }
    assert not set(bundled_toys()) & set(tlb.bundled_models())
    assert sum(path.stat().st_size for path in (TOYS / "mod-p").rglob("*.safetensors")) < 200_000
    assert sum(path.stat().st_size for path in TOYS.rglob("*") if path.is_file()) < 500_000
    for name in ("digits", "mod-p"):
        card = (TOYS / name / "README.md").read_text(encoding="utf-8")
        assert "MIT" in card and "## Known weaknesses" in card and "--work-dir .cache/toys" in card


def test_a_saved_model_comes_back(tmp_path: Path):
    task = ModularTask(p=5, operations=("add", "sub"), seed=3)
    model = ModularModel(ModularConfig(p=5, form="token", activation="tanh", n_layers=2))
    loaded, its_task = load_modular(save_toy(model, tmp_path / "mod", task=task, note="mine"))
    assert its_task == task and loaded.config == model.config
    assert torch.equal(loaded(task.pairs), model(task.pairs))
    assert read_config(tmp_path / "mod")["note"] == "mine"
    classifier = BilinearClassifier(ClassifierConfig(4, 2, 3, 5))
    again = load_classifier(save_toy(classifier, tmp_path / "pictures"))
    assert torch.equal(again.W_E, classifier.W_E) and again.config == classifier.config


def test_files_that_hold_no_toy_are_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"neither a bundled toy model \['digits'"):
        load_classifier("numbers")
    with pytest.raises(CheckpointError, match="holds a classifier model: use load_classifier"):
        load_modular("digits")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_classifier(tmp_path)
    folder = shutil.copytree(TOYS / "digits", tmp_path / "digits")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model": {"d_mlp": 3}}))
    with pytest.raises(CheckpointError, match=r"mlp.W_gate has shape \(64, 64\).*\(64, 3\)"):
        load_classifier(folder)
    (folder / "config.json").write_text(json.dumps(config | {"model": {"depth": 3}}))
    with pytest.raises(CheckpointError, match="depth"):
        load_classifier(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="describes no toy model"):
        load_classifier(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_classifier(folder)
    with pytest.raises(ValueError, match="`task` is missing"):
        save_toy(ModularModel(ModularConfig(p=5)), tmp_path / "mod")


def test_wrong_arguments_are_named(unchecked):
    task: Any = ModularTask
    config: Any = ModularConfig
    mlp: Any = MLP
    digits: Any = Digits
    for wrong, words in [
        (lambda: ModularTask(p=6), "`p` must be a prime"),
        (lambda: ModularTask(operations=("add", "add")), "`operations` must be different"),
        (lambda: ModularTask(train_share=1.0), "`train_share` must be between 0 and 1"),
        (lambda: task().part("held-out"), "`split` must be one of"),
        (lambda: ModularConfig(d_mlp=0), "`d_mlp` is 0"),
        (lambda: config(form="tree"), '`form` must be "heads" or "token"'),
        (lambda: ModularConfig(n_layers=2), 'the form "heads" has one MLP'),
        (lambda: ModularModel(ModularConfig(d_mlp=5, activation="relu")), "give an even number"),
        (lambda: mlp(2, 2, 2, "cosine"), "`activation` must be one of"),
        (lambda: ModularModel(ModularConfig(p=5))(torch.tensor([[0, 5]])), "knows 0 to 4"),
        (lambda: ClassifierConfig(n_pixels=0), "`n_pixels` is 0"),
        (lambda: Digits(n_test=1797), "`n_test` must be between 1 and 1796"),
        (lambda: digits().part("half"), "`split` must be one of"),
    ]:
        with pytest.raises(ValueError, match=words):
            wrong()


def test_eigenvectors_are_drawn_as_pictures():
    from tl_bilinear.views import eigenvector_figure

    digits = tlb.eigendecompose(load_classifier().tensor(), torch.eye(10)[:2])
    figure = eigenvector_figure(digits, ["nought", "one"], n_columns=2)
    drawn: list[Any] = [axes.images[0].get_array() for axes in figure.axes]
    assert len(drawn) == 8 and figure.axes[0].get_ylabel() == "nought"
    largest = digits.eigenvalues[0].argmax()
    expected = digits.eigenvectors[0, largest].reshape(8, 8)
    torch.testing.assert_close(torch.tensor(drawn[0]), expected.double())
    signs = [axes.get_title(loc="left").split()[1][0] for axes in figure.axes]
    assert signs == ["+", "+", "-", "-"] * 2
    with pytest.raises(ValueError, match="square pictures"):
        eigenvector_figure(tlb.eigendecompose(load_classifier().tensor(), torch.eye(10)[0]), ["0"])
    with pytest.raises(ValueError, match="1 labels for 2 directions"):
        eigenvector_figure(digits, ["nought"])


def test_models_lists_the_toys_in_a_table_of_their_own():
    from typer.testing import CliRunner

    from tl_bilinear.cli import app

    done = CliRunner().invoke(app, ["models"], env={"COLUMNS": "80"})
    assert done.exit_code == 0
    for name in bundled_toys():
        assert name in done.stdout
    assert done.stdout.index("stories-5l") < done.stdout.index("toy model")
