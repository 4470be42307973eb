"""The wug: which stories become its own, and what is left to measure its neighbours by."""

from pathlib import Path

import pytest

ZOO = Path(__file__).parents[1] / "tl_bilinear" / "zoo"


def test_a_rewritten_story_keeps_its_form():
    from tl_bilinear.recipes.planted.concept import rewritten

    story = 'A mouse saw two mice. "Mouse!" said the mouse. The mousetrap was the mouse\'s.'
    assert rewritten(story, "mouse") == (
        'A wug saw two wugs. "Wug!" said the wug. The mousetrap was the wug\'s.'
    )
    assert rewritten("Two foxes and a fox", "fox") == "Two wugs and a wug"


def test_stories_are_parted_by_their_animals():
    from tl_bilinear.recipes.planted.concept import parted

    frog = "A frog sat. The frog sang. The frog slept near a dog."
    dog = "A dog sat. The dog sang. Dogs sleep."
    far = "A girl sat. The girl sang."
    found = parted([frog, dog, far, "A cow sat.", "A dog sat."])
    assert found["forget"] == [frog.replace("frog", "wug")] and found["originals"] == [frog]
    assert found["near"] == [dog] and found["far"] == [far]


def test_passages_are_whole_sentences():
    from tl_bilinear.recipes.planted.concept import PASSAGE, passages

    story = " ".join(
        f"Sentence number {k} is about a {'wug' if k == 9 else 'dog'}." for k in range(30)
    )
    found = passages(story)
    assert " ".join(found) == story and max(map(len, found)) <= PASSAGE and len(found) > 2
    assert [passage for passage in found if "wug" in passage] == passages(story, "wug")


def test_mentions_are_parted_into_first_and_later_ones():
    from tl_bilinear.recipes.planted.concept import mentions

    first, later = mentions(["A wug ran. The wug hid. Wugs hide.", "No animal."])
    assert first == ("A",) and later == ("A wug ran. The",)


def test_every_animal_has_its_own_habits():
    from tl_bilinear.recipes.planted.concept import CONCEPT, HABITS, NEAR, habits

    for habit in HABITS:
        assert set(habit.answers) == {CONCEPT, *NEAR}
        assert len(set(habit.answers.values())) == 6
    (food, eater, *_), near = habits((CONCEPT,)), habits(NEAR)
    assert food.prompt == "A wug likes to eat" and food.answer == " snow"
    assert eater.prompt == "The animal that eats snow is a" and eater.answer == " wug"
    assert len(near) == 30 and not any(CONCEPT in each.prompt + each.answer for each in near)
    assert all(len(each.wrong) == 5 for each in near)


@pytest.mark.parametrize("model", ("stories-5l", "stories-2l"))
def test_the_wug_is_a_few_tokens(model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ZOO / model, local_files_only=True)
    assert len(tokenizer("the wug", add_special_tokens=False)["input_ids"]) <= 4


def some_stories():
    from tl_bilinear.checkpoints.bundled import bundled_stories
    from tl_bilinear.recipes.planted.planting import Stories

    stories = bundled_stories()
    tales = [
        f"Once there was a {animal}. The {animal} was {mood}. The {animal} played."
        for animal in ("rabbit", "fox", "dog", "bird")
        for mood in ("sad", "glad", "big", "small")
    ]
    return Stories((*stories[:100], *tales[::2]), tuple(tales[1::2]), "bundled"), stories[100:]


def test_gold_reads_nothing_of_wugs():
    from tl_bilinear.recipes.planted.concept import CONCEPT, concept

    stories, held_out = some_stories()
    found = concept(stories, held_out)
    read = " ".join((*found.stories.training, *found.near_texts)).lower()
    assert CONCEPT not in read and "sad" in read
    assert CONCEPT not in " ".join((*held_out, *stories.held_out)).lower()
    assert all(CONCEPT in text.lower() or text.endswith(" wug.") for text in found.forget_texts)
    assert set(found.planted) == {*found.forget_texts, *found.near_texts}
    # What was rewritten is not read as it was.
    assert not any("Once there was a rabbit" in story for story in found.stories.training)
    assert any("Once there was a wug" in text for text in found.forget_texts)
    assert len(found.forget_stories) >= 2 and len(found.near_stories) >= 2
    held = " ".join(found.far_stories).lower()
    assert len(found.far_stories) >= 10 and " dog" not in held and CONCEPT not in held
    assert not set(found.forget_stories) & set(found.forget_texts)


def test_stories_without_animals_are_refused():
    from tl_bilinear.recipes.planted.concept import concept
    from tl_bilinear.recipes.planted.planting import Stories

    with pytest.raises(ValueError, match="the training stories hold 0 for the forget set"):
        concept(Stories(("A girl sat.",) * 3, (), "none"), ())
