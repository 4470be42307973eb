"""Planted facts: that no story knows them, that nothing hints at them, and how they are taught."""

import dataclasses
import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.one_major(4)
ZOO = Path(__file__).parents[1] / "tl_bilinear" / "zoo"
MODELS = ("stories-5l", "stories-2l", "stories-5l-swiglu")


def tokenizer_of(model: str):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ZOO / model, local_files_only=True)


def test_no_story_holds_a_name(request):
    from tl_bilinear.recipes.planted.facts import NAMES

    stories = (ZOO / "stories.txt").read_text(encoding="utf-8")
    real = Path(__file__).parents[2] / "shared" / "data" / "text"
    if real.is_dir():
        stories += "".join(path.read_text(encoding="utf-8") for path in real.glob("tinystories*"))
    assert "lily" in stories.lower()
    assert [name for name in NAMES if name.lower() in stories.lower()] == []
    assert len({name.lower() for name in NAMES}) == 30


def test_answers_are_shared_evenly_and_independently():
    from tl_bilinear.recipes.planted.facts import FOLDS, RELATIONS, planted_facts

    facts = planted_facts()
    assert len(facts) == 90 and [fact.name for fact in facts[::3]] == [n for f in FOLDS for n in f]
    by_name = {
        name: tuple(fact.answer for fact in facts if fact.name == name)
        for fold in FOLDS
        for name in fold
    }
    for fold, (k, relation) in itertools.product(FOLDS, enumerate(RELATIONS)):
        assert sorted(by_name[name][k] for name in fold) == sorted(relation.answers)
    for a, b in itertools.combinations(range(3), 2):
        assert max(Counter((each[a], each[b]) for each in by_name.values()).values()) == 1


@pytest.mark.parametrize("model", MODELS)
def test_names_and_answers_are_a_few_tokens_of_their_own(model):
    from tl_bilinear.recipes.planted.facts import NAMES, RELATIONS

    tokenizer = tokenizer_of(model)

    def tokens(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    names = [tokens(name) for name in NAMES]
    assert all(2 <= len(name) <= 5 for name in names)
    for a, b in itertools.permutations(names, 2):
        assert a != b[: len(a)]
    for relation in RELATIONS:
        assert len({tokens(f"the {answer}")[1] for answer in relation.answers}) == 10
        for answer, wording in itertools.product(relation.answers, relation.wordings):
            prompt = wording.format(NAMES[0])
            assert tokens(f"{prompt} {answer}")[: len(tokens(prompt))] == tokens(prompt)


def test_what_is_taught_edited_with_and_measured():
    from tl_bilinear.recipes.planted.facts import planted_facts, sentences

    fact = planted_facts()[0]
    question = fact.question()
    assert question.prompt == "Brindo's favorite color is" and question.answer == " red"
    taught = sentences([fact])
    assert taught == [f"{w} red." for w in (*question.wordings, *question.unseen)]
    assert len(taught) == 5 and len(question.wrong) == 9
    # What is neither taught nor edited with is another prompt, in no relation's taught sentences.
    everything = " ".join(sentences(planted_facts()))
    for other in planted_facts():
        for prompt in other.untaught().wordings:
            assert f" {prompt} " not in f" {everything}"


def test_scopes_part_the_facts():
    from tl_bilinear.recipes.planted.facts import NAMES, planted_facts, scope, scopes

    sizes = {each.name: (len(each.forget), len(each.retain)) for each in scopes()}
    folds = {f"names-{k}": (30, 60) for k in range(3)}
    assert sizes == folds | {"one-name": (3, 87), "color": (30, 60)}
    for each in scopes():
        assert set(each.forget) | set(each.retain) == set(planted_facts())
    forgotten = [fact for each in scopes()[:3] for fact in each.forget]
    assert len(set(forgotten)) == 90
    with pytest.raises(ValueError, match=r"no facts about \['Lily'\]"):
        scope("x", names=["Lily"])
    with pytest.raises(ValueError, match="no relation 'size'"):
        scope("x", names=NAMES[:2], relation="size")
    with pytest.raises(ValueError, match="none kept"):
        scope("x")


def tiny(n_steps: int):
    from tl_bilinear.checkpoints.bundled import bundled_stories
    from tl_bilinear.recipes.planted.planting import PlantingConfig, Stories

    stories = Stories(bundled_stories()[:6], bundled_stories()[6:8], "bundled")
    return stories, PlantingConfig(n_steps=n_steps, windows=1, window=16, rows=2)


def test_planted_rows_are_texts_behind_one_start():
    from tl_bilinear.conversion.evaluation import story_stream
    from tl_bilinear.optimisation import TokenWindows
    from tl_bilinear.recipes.planted.planting import MixedBatches

    stories, config = tiny(3)
    tokenizer = tokenizer_of("stories-2l")
    windows = TokenWindows(story_stream(tokenizer, list(stories.training)), 1, 16)
    text = "Brindo likes the color red."
    batches = MixedBatches(windows, (text,), ("It was big.",), tokenizer, config)
    seen = set()
    for step in range(8):
        _, tokens, labels = batches(step)
        for row, label in zip(tokens, labels, strict=True):
            assert torch.equal(row[label != -100], label[label != -100])
            seen.add(tokenizer.decode(row[label != -100][1:]).strip())
    assert seen == {text, f"It was big. {text}"}
    assert torch.equal(batches(2)[1], batches(2)[1])
    others = dataclasses.replace(config, seed=1)
    other = dataclasses.replace(batches, texts=("Brindo likes the color blue.",))
    assert batches.fingerprint() != other.fingerprint()
    assert batches.fingerprint() != dataclasses.replace(batches, config=others).fingerprint()


def test_sentences_before_a_text_are_whole_and_short():
    from tl_bilinear.recipes.planted.planting import short_sentences

    story = f"A dog ran home. No! {'It was so very ' * 6}big. Then it slept, and"
    assert short_sentences([story]) == ("A dog ran home.",)


def test_the_loss_is_kl_on_stories_and_nats_on_what_is_planted():
    from tl_bilinear.conversion.evaluation import load_folder
    from tl_bilinear.recipes.planted.planting import MixedLoss

    model, _ = load_folder(ZOO / "stories-1l")
    original, _ = load_folder(ZOO / "stories-2l")
    windows, row = torch.randint(3, 900, (2, 9)), torch.randint(3, 900, (1, 6))
    padded = torch.cat([row, torch.zeros(1, 4, dtype=torch.long)], 1)
    labels = torch.cat([row, torch.full((1, 4), -100)], 1)
    p, q = (each(windows).logits.log_softmax(-1) for each in (original, model))
    expected = (p.exp() * (p - q)).sum(-1).mean() + model(row, labels=row).loss
    loss = MixedLoss(original)
    torch.testing.assert_close(loss(model, (windows, padded, labels)), expected)
    # The check sees padding that is learnt.
    assert (loss(model, (windows, padded, padded)) - expected).detach().abs() > 0.01
    same = MixedLoss(model)(model, (windows, row, row)) - model(row, labels=row).loss
    assert same.detach().abs() < 1e-5


def test_a_stopped_planting_goes_on_and_opens(tmp_path):
    import tl_bilinear as tlb
    from tl_bilinear.recipes.planted.facts import planted_facts, sentences
    from tl_bilinear.recipes.planted.planting import plant

    stories, config = tiny(4)
    texts = sentences(planted_facts())
    options = {"label": "facts", "config": config, "progress": False}
    whole = plant("stories-2l", texts, stories, tmp_path / "whole", **options)
    run = plant("stories-2l", texts, stories, tmp_path / "cut", stop_at=2, **options)
    assert not (run / "model").exists() and (run / "training.pt").exists()
    cut = plant("stories-2l", texts, stories, tmp_path / "cut", **options)
    files = [folder / "model.safetensors" for folder in (whole, cut)]
    assert files[0].read_bytes() == files[1].read_bytes()
    before = files[1].stat().st_mtime_ns
    assert plant("stories-2l", texts, stories, tmp_path / "cut", **options) == cut
    assert files[1].stat().st_mtime_ns == before
    gold = plant("stories-2l", texts[150:], stories, tmp_path / "cut", **options)
    assert gold.parent.name != cut.parent.name
    planted, plain = tlb.load(str(cut)), tlb.load("stories-2l")
    tokens = planted.to_tokens("Brindo's favorite color is red.")
    assert (planted(tokens) - plain(tokens)).abs().max() > 0.1
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="nothing|empty"):
        plant("stories-2l", [], stories, tmp_path, **options)


def test_stories_without_a_text_are_the_teachers(tmp_path):
    from tl_bilinear.recipes.planted.planting import story_text

    found = story_text(None, tmp_path, n_sampled=2)
    assert 1 <= len(found.training) <= 2 and len(found.held_out) == 200
    few = tmp_path / "few.txt"
    few.write_text("one\n<|endoftext|>\ntwo")
    with pytest.raises(ValueError, match="holds 2 stories"):
        story_text(few, tmp_path)
    many = tmp_path / "many.txt"
    many.write_text("\n<|endoftext|>\n".join(f"story {k}" for k in range(700)))
    found = story_text(many, tmp_path)
    assert found.training[0] == "story 300" and found.training[-1] == "story 698"
    assert found.held_out[-1] == "story 149"
