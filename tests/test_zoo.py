"""Sampling, evaluation, and the bundled models: made, complete, and as good as they say."""

from pathlib import Path

import pytest
import torch
from gated import assert_is_bilinear, log_probs, tiny_config, tiny_llama

REPO = Path(__file__).parents[1]
ZOO = REPO / "tl_bilinear" / "zoo"
TINYSTORIES = REPO.parent / "shared" / "data" / "text" / "tinystories_sample_2MiB.txt"


def test_samples_follow_the_model_and_its_seed(tmp_path):
    from tl_bilinear.conversion import sample_stories

    model = tiny_llama()
    options = {"max_tokens": 20, "batch_size": 4, "progress": False}
    drawn = sample_stories(model, 6, seed=3, **options, cache_folder=tmp_path)
    again = sample_stories(model, 6, seed=3, **options)
    cached = sample_stories(model, 6, seed=3, **options, cache_folder=tmp_path)
    assert drawn.rows() == again.rows() == cached.rows()
    assert drawn.rows() != sample_stories(model, 6, seed=4, **options).rows()
    assert all(row[0] == 1 and not {1, 2} & set(row[1:]) for row in drawn.rows())
    assert drawn.stream().tolist() == [token for row in drawn.rows() for token in row]
    for row, complete in zip(drawn.rows(), drawn.complete.tolist(), strict=True):
        assert complete or len(row) == 20
    with pytest.raises(ValueError, match="was drawn with seed=3, but seed=4"):
        sample_stories(model, 6, seed=4, **options, cache_folder=tmp_path)


def test_cold_samples_are_greedy_text():
    from tl_bilinear.conversion import sample_batch

    model = tiny_llama()
    row = sample_batch(model, 3, seed=0, temperature=1e-4, max_tokens=16).rows()[1]
    tokens = [1]
    while len(tokens) < len(row):  # without a cache
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    assert row == tokens


def test_sampled_frequencies_are_the_models():
    from tl_bilinear.conversion import sample_batch

    model = tiny_llama(initializer_range=0.5)
    samples = sample_batch(model, 20_000, seed=0, max_tokens=2)
    p = log_probs(model, torch.tensor([[1]]))[0, 0].exp()
    running = samples.lengths == 2
    assert 1 - running.float().mean().item() == pytest.approx((p[1] + p[2]).item(), abs=0.02)
    seen = torch.bincount(samples.tokens[running][:, 1], minlength=40) / len(samples)
    expected = p.clone()
    expected[1:3] = 0
    torch.testing.assert_close(seen, expected, atol=0.015, rtol=0)


def test_evaluation_is_the_mean_over_single_stories():
    from tl_bilinear.conversion.evaluation import (
        encode_stories,
        evaluate,
        load_folder,
        read_stories,
    )

    model, tokenizer = load_folder(ZOO / "stories-5l-swiglu")
    stories = read_stories(ZOO / "stories.txt")[:3]
    result = evaluate(model, tokenizer, stories, max_tokens=40, batch_size=2)
    total = 0.0
    for row in encode_stories(tokenizer, stories):
        ids = torch.tensor([row[:40]])
        total += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    assert result.nats == pytest.approx(total, rel=1e-5)
    assert result.n_tokens == 3 * 39
    cut = [tokenizer.decode(r[1:40]) for r in encode_stories(tokenizer, stories)]
    assert all(story.startswith(text) for story, text in zip(stories, cut, strict=True))
    assert result.n_bytes == sum(len(text.encode()) for text in cut)


def test_bundled_bilinear_model_is_near_its_teacher():
    from tl_bilinear.conversion.evaluation import evaluate, load_folder, read_stories

    stories = read_stories(ZOO / "stories.txt")[:20]
    losses = {}
    for name in ("stories-5l", "stories-5l-swiglu"):
        model, tokenizer = load_folder(ZOO / name)
        losses[name] = evaluate(model, tokenizer, stories).nats_per_token
    assert losses["stories-5l"] == pytest.approx(losses["stories-5l-swiglu"], abs=0.06)


def test_bundled_bilinear_model_is_bilinear():
    from tl_bilinear.conversion.evaluation import load_folder

    model, tokenizer = load_folder(ZOO / "stories-5l")
    assert type(model).__name__ == "LlamaForCausalLM" and model.config.hidden_act == "linear"
    assert_is_bilinear(model.get_submodule("model.layers.2.mlp"), torch.randn(4, 64))
    text = "Once upon a time, Zoë said: “hi!”\n1 + 1"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_teacher_writes_the_published_greedy_text():
    from tl_bilinear.conversion.evaluation import load_folder
    from tl_bilinear.conversion.stories import greedy_text

    model, tokenizer = load_folder(ZOO / "stories-5l-swiglu")
    # llama2.c, README and test_all.py: the greedy text of stories260K
    assert greedy_text(model, tokenizer, n_tokens=60).startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
        "park. One day, she saw a big, red ball."
    )


TWINS = ("", "-swiglu", "-relu", "-gelu")
SMALL = [size + twin for size in ("stories-1l", "stories-2l") for twin in TWINS]


@pytest.mark.one_major(4)
@pytest.mark.parametrize("size", ["stories-1l", "stories-2l"])
def test_small_stories_are_as_good_as_their_cards_say(size):
    from tl_bilinear.checkpoints.bundled import beginning
    from tl_bilinear.conversion.evaluation import evaluate, load_folder, read_stories

    stories = [beginning(story, 800) for story in read_stories(ZOO / "stories.txt")]
    losses, weights = {}, set()
    for twin in TWINS:
        model, tokenizer = load_folder(ZOO / (size + twin))
        weights.add(sum(each.numel() for each in model.parameters()))
        losses[twin] = evaluate(model, tokenizer, stories[:30], max_tokens=256).nats_per_token
        for word in ("dog", "girl", "park", "happy"):
            assert len(tokenizer(word)["input_ids"]) == 2  # <s> and the word
    assert len(weights) == 1
    assert max(losses.values()) - min(losses.values()) < 0.1
    model, tokenizer = load_folder(ZOO / size)
    found = evaluate(model, tokenizer, stories, max_tokens=256).nats_per_token
    card = (ZOO / size / "README.md").read_text()
    row = next(line for line in card.splitlines() if line.startswith("| stories.txt |"))
    assert found == pytest.approx(float(row.split("|")[3]), abs=2e-3)


@pytest.mark.parametrize("name", SMALL)
def test_small_stories_open_where_their_cards_say(name):
    import tl_bilinear as tlb

    if name.endswith(("relu", "gelu")):
        with pytest.raises(ValueError, match="no gated MLP"):
            tlb.load(name)
    elif name.endswith("swiglu"):
        assert tlb.get_host(tlb.load(name, frozen_gates=True)).frozen_gates
    else:
        tlb.self_check(tlb.load(name))


def test_the_package_stays_small():
    assert sum(path.stat().st_size for path in ZOO.rglob("*") if path.is_file()) < 16e6


def test_zoo_is_complete_and_small():
    for name in ("stories-5l", "stories-5l-swiglu", *SMALL):
        files = {path.name: path.stat().st_size for path in (ZOO / name).iterdir()}
        assert set(files) == {
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "README.md",
            "LICENSE",
        }
        assert sum(files.values()) < 1_700_000
    assert (ZOO / "stories.txt").stat().st_size < 200_000
    assert not list(ZOO.rglob("*.py"))


def test_shipped_stories_are_whole_and_read_back():
    from tl_bilinear.conversion.evaluation import read_stories

    stories = read_stories(ZOO / "stories.txt")
    assert len(stories) == len(set(stories)) == 200
    assert not any("\ufffd" in story or "<" in story for story in stories)


@pytest.mark.one_major(4)
@pytest.mark.skipif(
    not TINYSTORIES.is_file(),
    reason=f"the TinyStories sample is not on this machine: {TINYSTORIES}",
)
def test_bundled_models_on_real_stories():
    from tl_bilinear.conversion.evaluation import evaluate, load_folder, read_stories

    stories = read_stories(TINYSTORIES)[:150]
    model, tokenizer = load_folder(ZOO / "stories-5l-swiglu")
    teacher = evaluate(model, tokenizer, stories)
    assert teacher.n_tokens == 58510
    assert teacher.nats_per_token == pytest.approx(1.4629, abs=1e-3)
    model, tokenizer = load_folder(ZOO / "stories-5l")
    assert evaluate(model, tokenizer, stories).nats_per_token <= teacher.nats_per_token + 0.02


@pytest.mark.one_major(4)
def test_recipe_runs_from_end_to_end_and_resumes(tmp_path, monkeypatch):
    import shutil

    from tl_bilinear.conversion import stories

    zoo = tmp_path / "zoo"
    shutil.copytree(ZOO / stories.TEACHER, zoo / stories.TEACHER)
    shipped = (ZOO / "stories.txt").read_text().split("<|endoftext|>")[:2]
    (zoo / "stories.txt").write_text("<|endoftext|>".join(shipped))
    monkeypatch.setattr(stories, "SAMPLING_BATCH", 4)
    recipe = (
        stories.Stage(tiny_config(n_steps=2, window=16), n_stories=4),
        stories.Stage(tiny_config(n_steps=3, window=16, learning_rate=1e-3), n_stories=8),
    )
    losses = stories.build(tmp_path / "work", zoo=zoo, stages=recipe)
    assert set(losses["stories.txt"]) == {"teacher (SwiGLU)", "beta = 0, untrained", "stories-5l"}
    files = {path.name for path in (zoo / "stories-5l").iterdir()}
    assert files == {path.name for path in (ZOO / "stories-5l").iterdir()}
    card = (zoo / "stories-5l" / "README.md").read_text()
    assert "--stages 2" in card and "2 steps of" in card and "(8 written stories)" in card
    weights = (zoo / "stories-5l" / "model.safetensors").read_bytes()
    stories.build(tmp_path / "work", zoo=zoo, stages=recipe)
    assert (zoo / "stories-5l" / "model.safetensors").read_bytes() == weights
    assert not list(zoo.glob(".*"))


def test_bad_sampling_and_evaluation_input_is_refused(tmp_path):
    from tl_bilinear.conversion import sample_stories
    from tl_bilinear.conversion.evaluation import evaluate, load_folder, read_stories

    with pytest.raises(ValueError, match="`max_tokens` is 33, but the model's context is 32"):
        sample_stories(tiny_llama(), 2, seed=0, max_tokens=33)
    with pytest.raises(ValueError, match="`temperature` is 0"):
        sample_stories(tiny_llama(), 2, seed=0, temperature=0, max_tokens=8)
    with pytest.raises(ValueError, match="no text file"):
        read_stories(tmp_path / "absent.txt")
    (tmp_path / "empty.txt").write_text(" <|endoftext|>\n")
    with pytest.raises(ValueError, match="holds no story"):
        read_stories(tmp_path / "empty.txt")
    with pytest.raises(ValueError, match="not a model folder"):
        load_folder(tmp_path)
    model, tokenizer = load_folder(ZOO / "stories-5l-swiglu")
    with pytest.raises(ValueError, match="nothing to predict in 0 stories"):
        evaluate(model, tokenizer, [])


def test_the_stories_are_cut_at_words() -> None:
    from tl_bilinear.checkpoints.bundled import bundled_stories
    from tl_bilinear.report.stories import N_CHARACTERS, N_STORIES, story_beginnings

    beginnings = story_beginnings()
    assert len(beginnings) == N_STORIES
    for beginning, story in zip(beginnings, bundled_stories(), strict=False):
        assert story.startswith(beginning) and 0 < len(beginning) <= N_CHARACTERS
        assert beginning == story or story[len(beginning)].isspace()
