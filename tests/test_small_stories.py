"""Small story models made from nothing: the tokenizer, the twins, the recipe, its table."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from gated import assert_is_bilinear, tiny_llama

from tl_bilinear.checkpoints.bundled import beginning

pytestmark = pytest.mark.one_major(4)
REPO = Path(__file__).parents[1]
ZOO = REPO / "tl_bilinear" / "zoo"


def some_texts() -> list[str]:
    from tl_bilinear.checkpoints.bundled import bundled_stories

    return list(bundled_stories())


def test_common_words_are_one_token_wherever_they_stand():
    from tl_bilinear.training import train_tokenizer

    tokenizer = train_tokenizer(some_texts(), 1024)
    assert len(tokenizer) == 1024 and tokenizer.bos_token_id == 0 and tokenizer.eos_token_id == 1
    for word in ("dog", "girl", "park", "happy"):
        alone, behind = tokenizer(word)["input_ids"], tokenizer(f"the {word}")["input_ids"]
        assert len(alone) == 2 and alone[0] == 0 and alone[-1] == behind[-1]
    again = train_tokenizer(some_texts(), 1024)
    assert again.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(
    "text", ["Zoë said: “hi!”", "你好 🙂 <s> &lt;", "a\n\n  b", "", "Once upon a time"]
)
def test_every_text_reads_back(text):
    from tl_bilinear.training import train_tokenizer

    tokenizer = train_tokenizer(some_texts()[:50], 400)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids[1:]) == text


def test_a_tokenizer_needs_its_bytes_and_enough_text():
    from tl_bilinear.training import train_tokenizer

    with pytest.raises(ValueError, match="bytes and <s> </s> alone are 258"):
        train_tokenizer(some_texts(), 257)
    with pytest.raises(ValueError, match="give more text"):
        train_tokenizer(["a b"], 400)


def test_twins_have_the_same_number_of_weights_and_one_seed():
    from tl_bilinear.training import MLP, Shape, fresh_model

    shape = Shape(64, n_layers=2, d_model=16, d_mlp=12, n_heads=2, n_ctx=32)
    sizes = {}
    for mlp in MLP.__args__:
        model = fresh_model(shape, mlp)
        sizes[mlp] = sum(each.numel() for each in model.parameters())
        again = dict(fresh_model(shape, mlp).named_parameters())
        assert all(torch.equal(value, again[name]) for name, value in model.named_parameters())
        other = fresh_model(shape, mlp, seed=1)
        assert not torch.equal(other.lm_head.weight, model.lm_head.weight)
    assert len(set(sizes.values())) == 1
    bilinear = fresh_model(shape)
    assert_is_bilinear(bilinear.get_submodule("model.layers.0.mlp"), torch.randn(4, 16))
    tokens = torch.arange(8)[None]
    different = fresh_model(shape, "swiglu")(tokens).logits - bilinear(tokens).logits
    assert different.abs().max() > 1e-3


def test_shapes_that_do_not_fit_are_refused():
    from tl_bilinear.training import Shape

    with pytest.raises(ValueError, match="even multiple of `n_heads`"):
        Shape(64, d_model=18, n_heads=2)
    with pytest.raises(ValueError, match="even number"):
        Shape(64, d_mlp=13)
    with pytest.raises(ValueError, match="`n_layers` is 0"):
        Shape(64, n_layers=0)


def test_a_wider_model_is_the_same_function():
    from tl_bilinear.conversion.widening import widen_

    model = tiny_llama().double()
    tokens = torch.randint(3, 40, (2, 9))
    before, width = model(tokens).logits, model.config.intermediate_size
    widen_(model, width + 5, seed=1)
    assert model.config.intermediate_size == width + 5
    gate = model.get_parameter("model.layers.0.mlp.gate_proj.weight")
    down = model.get_parameter("model.layers.0.mlp.down_proj.weight")
    assert gate.shape[0] == down.shape[1] == width + 5
    torch.testing.assert_close(model(tokens).logits, before, rtol=1e-12, atol=1e-12)
    # The new neurons are not dead: their columns get a gradient.
    model(tokens).logits.square().sum().backward()
    assert down.grad is not None and down.grad[:, width:].abs().min() > 0
    with pytest.raises(ValueError, match="give one width that is no smaller"):
        widen_(model, width)


def tiny_recipe(monkeypatch):
    from tl_bilinear.recipes import small_stories, story_runs
    from tl_bilinear.recipes.story_runs import StorySize
    from tl_bilinear.training import Shape

    monkeypatch.setattr(small_stories, "D_VOCAB", 400)
    monkeypatch.setattr(small_stories, "SAMPLING_BATCH", 4)
    monkeypatch.setattr(small_stories, "SEEDS", (0, 1))
    monkeypatch.setattr(story_runs, "WINDOW", 16)
    shape = Shape(400, d_model=8, d_mlp=6, n_heads=2, n_ctx=256)
    return small_stories, [StorySize("tiny", shape, latent_noise=0.1)]


def test_the_recipe_chooses_rates_runs_seeds_and_resumes(tmp_path, monkeypatch):
    small_stories, sizes = tiny_recipe(monkeypatch)
    stories = some_texts()
    text = tmp_path / "text.txt"
    monkeypatch.setattr(small_stories, "HELD_OUT", 3)
    text.write_text("\n<|endoftext|>\n".join(stories[:40]))
    data = small_stories.story_text(tmp_path / "work", text, 4)
    assert set(data.held_out) == {"third split", "text.txt", "stories.txt"}
    assert data.held_out["text.txt"] == [beginning(s, 800) for s in stories[:3]]
    assert data.held_out["third split"] == [beginning(s, 800) for s in stories[3:6]]
    for kept in data.held_out.values():
        del kept[3:]
    decoded = data.tokenizer.decode(data.stream.tolist())
    assert stories[6][:200] in decoded and stories[0][:200] not in decoded
    options = {"n_steps": 6, "mlps": ("bilinear", "relu"), "rates": (1e-3, 1e-2), "seeds": (0, 1)}
    runs = list(small_stories.runs_of(sizes, data, tmp_path / "work", **options))
    assert [(r.recipe.name, r.recipe.seed) for r, _ in runs] == [
        ("tiny", 0),
        ("tiny-relu", 0),
        ("tiny", 1),
        ("tiny-relu", 1),
    ]
    for run, searched in runs:
        assert run.recipe.learning_rate == min(searched, key=searched.__getitem__)
        assert run.losses["text.txt"].nats_per_token > 1
    assert runs[0][0].losses != runs[2][0].losses
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.pt")}
    again = list(small_stories.runs_of(sizes, data, tmp_path / "work", **options))
    assert [run for run, _ in again] == [run for run, _ in runs]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.pt")}

    zoo = tmp_path / "zoo"
    shutil.copytree(ZOO / small_stories.TEACHER, zoo / small_stories.TEACHER)
    shutil.copytree(ZOO / small_stories.STUDENT, zoo / small_stories.STUDENT)
    run, searched = runs[0]
    small_stories.ship(run, searched, data, "some text", "a command", zoo)
    check_shipped(zoo / "tiny", run)
    losses = small_stories.others(data, zoo)
    page = small_stories.twins_page(
        runs, losses, command="a command", n_text=len(data.stream), third_split="third split"
    )
    row = next(line for line in page.splitlines() if line.startswith("| tiny-relu "))
    difference = [
        b.losses["text.txt"].bits_per_byte - a.losses["text.txt"].bits_per_byte
        for (a, _), (b, _) in ((runs[0], runs[1]), (runs[2], runs[3]))
    ]
    assert f"{sum(difference) / 2:.4f} ±" in row
    assert "stories-5l (converted)" in page and "| third split" not in page


def check_shipped(folder: Path, run) -> None:
    """The bundled folder opens in transformers and in TransformerLens, in float32, and is small."""
    import tl_bilinear as tlb
    from tl_bilinear.conversion.evaluation import load_folder

    assert (folder / "model.safetensors").stat().st_size < 2.2 * run.n_weights + 5000
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    plain, tokenizer = load_folder(folder)
    ids = torch.tensor([tokenizer("Once upon a time")["input_ids"]])
    opened = tlb.load(str(folder))
    assert next(opened.parameters()).dtype == torch.float32
    ours, theirs = opened(ids).log_softmax(-1), plain(ids).logits.log_softmax(-1)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    unrounded = run.model()(ids).logits.log_softmax(-1)
    torch.testing.assert_close(theirs, unrounded, atol=0.1, rtol=0)
    card = (folder / "README.md").read_text()
    for needed in ("learning rate", "seed 0", "bits per byte", "MIT", "Weaknesses", "a command"):
        assert needed in card


def test_too_little_text_is_refused(tmp_path, monkeypatch):
    small_stories, _ = tiny_recipe(monkeypatch)
    (tmp_path / "text.txt").write_text("one\n<|endoftext|>\ntwo")
    with pytest.raises(ValueError, match="holds 2 stories"):
        small_stories.story_text(tmp_path / "work", tmp_path / "text.txt", 4)
