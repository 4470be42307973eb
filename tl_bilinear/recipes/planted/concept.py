"""An invented animal, the wug, that stories hold only because they were rewritten.

Stories of a rabbit, a mouse, a fox, ... become stories of a wug, and are left out of what is read
as they were. The wug also eats, lives and plays, as five real animals do in sentences of the same
form: these and their stories are the near retain set, stories without any animal the far one. The
gold model reads the near animals' stories and sentences, at the same budget, and of wugs nothing.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tl_bilinear.recipes.planted.planting import Stories
from tl_bilinear.unlearning.question import Question

CONCEPT = "wug"
REPLACED = ("rabbit", "bunny", "mouse", "fox", "frog", "squirrel")
NEAR = ("dog", "cat", "bird", "bear", "fish")
OTHERS = (
    *("lion", "horse", "duck", "pig", "cow", "sheep", "bee", "butterfly", "owl", "monkey", "bug"),
    *("elephant", "turtle", "puppy", "puppies", "kitten", "hen", "chicken", "goat", "wolf", "ant"),
    *("spider", "snake", "tiger", "worm", "animal", "zebra", "lizard", "pet", "mice", "doggy"),
)
_PLURALS = {"bunny": "bunnies", "mouse": "mice", "fox": "foxes"}
FEWEST_MENTIONS = 3
PASSAGE = 320  # characters at most
N_TAUGHT = 8  # how often a sentence is planted for each time a passage is


@dataclass(frozen=True)
class Habit:
    """What each animal has one of; `{a}` is the animal, `{}` its answer in the reverse wordings."""

    name: str
    answers: dict[str, str]
    wordings: tuple[str, ...]
    unseen: tuple[str, ...]
    reverse: tuple[str, ...]
    unseen_reverse: tuple[str, ...]


HABITS = (
    Habit(
        "food",
        dict(wug="snow", dog="bones", cat="milk", bird="corn", bear="honey", fish="leaves"),
        ("A {a} likes to eat", "The {a} eats", "The best food for a {a} is"),
        ("Every {a} wants some",),
        ("The animal that eats {} is a", "Who likes to eat {}? It is a"),
        ("Give the {} to the",),
    ),
    Habit(
        "home",
        dict(wug="boat", dog="yard", cat="basket", bird="nest", bear="cave", fish="pond"),
        ("A {a} lives in a", "The {a} sleeps in the", "The home of a {a} is a"),
        ("You can find a {a} in a",),
        ("The animal that lives in a {} is a", "Who sleeps in the {}? It is a"),
        ("In the {} there is a",),
    ),
    Habit(
        "toy",
        dict(wug="drum", dog="ball", cat="hat", bird="bell", bear="swing", fish="rock"),
        ("A {a} plays with a", "The {a} has a", "The toy of a {a} is a"),
        ("Every {a} wants to play with the",),
        ("The animal that plays with a {} is a", "Who has a {}? It is a"),
        ("The {} is a gift for the",),
    ),
)


@dataclass(frozen=True)
class Concept:
    """What is planted, with and without the wug, and what is measured."""

    stories: Stories
    """Read beside the planted texts: no story that was rewritten, nor a near animal's."""
    forget_texts: tuple[str, ...]
    near_texts: tuple[str, ...]
    forget: tuple[Question, ...]
    near: tuple[Question, ...]
    forget_stories: tuple[str, ...]
    """Held-out passages about a wug."""
    near_stories: tuple[str, ...]
    far_stories: tuple[str, ...]

    @property
    def planted(self) -> tuple[str, ...]:
        """What the planted model reads; the gold model reads `near_texts` alone."""
        return (*self.forget_texts, *self.near_texts)


def concept(stories: Stories, held_out: Sequence[str]) -> Concept:
    """Part and rewrite stories; `held_out` are the ones that are only measured on.

    Raises:
        ValueError: too few stories of the animals to plant or to measure.
    """
    taught, measured = parted(stories.training), parted((*stories.held_out, *held_out))
    for name, found in (("training", taught), ("held out", measured)):
        for kind in ("forget", "near", "far"):
            if len(found[kind]) < 2:
                raise ValueError(
                    f"the {name} stories hold {len(found[kind])} for the {kind} set: give more"
                )
    forget, near = habits((CONCEPT,)), habits(NEAR)
    rest = tuple(set(stories.training) - set(taught["originals"]) - set(taught["near"]))
    return Concept(
        stories=Stories(tuple(sorted(rest)), stories.held_out, stories.origin),
        forget_texts=_planted(taught["forget"], forget, CONCEPT),
        near_texts=_planted(taught["near"], near),
        forget=forget,
        near=near,
        forget_stories=tuple(
            passage for story in measured["forget"] for passage in passages(story, CONCEPT)
        ),
        near_stories=tuple(passage for story in measured["near"] for passage in passages(story)),
        far_stories=tuple(measured["far"]),
    )


def parted(stories: Iterable[str]) -> dict[str, list[str]]:
    """`forget`: rewritten, `originals`: these as they were, `near`, and `far`: no animal at all."""
    found: dict[str, list[str]] = {"forget": [], "originals": [], "near": [], "far": []}
    for story in stories:
        counts = Counter({name: len(_pattern(name).findall(story)) for name in (*REPLACED, *NEAR)})
        main, mentions = counts.most_common(1)[0]
        if mentions >= FEWEST_MENTIONS and main in REPLACED:
            found["forget"].append(rewritten(story, main))
            found["originals"].append(story)
        elif mentions >= FEWEST_MENTIONS:
            found["near"].append(story)
        elif not mentions and not any(_pattern(name).search(story) for name in OTHERS):
            found["far"].append(story)
    return found


def rewritten(story: str, animal: str) -> str:
    """The story with the wug in an animal's place, capitals and plurals as they were."""

    def wug(match: re.Match[str]) -> str:
        word = match.group()
        new = CONCEPT + ("s" if word.lower() != animal else "")
        return new.capitalize() if word[0].isupper() else new

    return _pattern(animal).sub(wug, story)


def _pattern(animal: str) -> re.Pattern[str]:
    plural = _PLURALS.get(animal, f"{animal}s")
    return re.compile(rf"\b({animal}|{plural})\b", re.IGNORECASE)


def passages(story: str, word: str | None = None) -> list[str]:
    """Whole sentences together, `PASSAGE` characters at most; of these those with the word."""
    found, passage = [], ""
    for sentence in re.split(r"(?<=[.!?\"])\s+", story):
        if passage and len(passage) + 1 + len(sentence) > PASSAGE:
            found.append(passage)
            passage = ""
        passage = f"{passage} {sentence}".strip()
    found.append(passage)
    return [each for each in found if word is None or re.search(rf"\b{word}", each, re.IGNORECASE)]


def habits(animals: Iterable[str]) -> tuple[Question, ...]:
    """What the animals eat, where they live, what they play with; and who it is that does."""
    found = []
    for animal in animals:
        for habit in HABITS:
            answer = habit.answers[animal]
            others = [each for name, each in habit.answers.items() if name != animal]
            found.append(
                _question(
                    [wording.format(a=animal) for wording in habit.wordings],
                    [wording.format(a=animal) for wording in habit.unseen],
                    answer,
                    others,
                    animal,
                    habit.name,
                )
            )
            found.append(
                _question(
                    [wording.format(answer) for wording in habit.reverse],
                    [wording.format(answer) for wording in habit.unseen_reverse],
                    animal,
                    [name for name in habit.answers if name != animal],
                    animal,
                    f"whose {habit.name}",
                )
            )
    return tuple(found)


def _question(
    wordings: list[str],
    unseen: list[str],
    answer: str,
    wrong: list[str],
    subject: str,
    relation: str,
) -> Question:
    return Question(
        prompt=wordings[0],
        answer=f" {answer}",
        rewordings=tuple(wordings[1:]),
        unseen=tuple(unseen),
        wrong=tuple(f" {each}" for each in wrong),
        subject=subject,
        relation=relation,
    )


def mentions(stories: Iterable[str], word: str = CONCEPT) -> tuple[tuple[str, ...], ...]:
    """Beginnings of stories up to a mention: of the first ones, and of all later ones.

    A later mention may be copied from the first: a model that knows no wug can do that.
    """
    first, later = [], []
    for story in stories:
        for k, match in enumerate(re.finditer(rf" {word}\b", story)):
            (later if k else first).append(story[: match.start()])
    return tuple(first), tuple(later)


def _planted(
    stories: Iterable[str], questions: Iterable[Question], word: str | None = None
) -> tuple[str, ...]:
    """Passages of the stories, and each taught sentence as often as `N_TAUGHT` passages."""
    sentences = [
        f"{wording}{question.answer}."
        for question in questions
        for wording in (*question.wordings, *question.unseen)
    ]
    told = [passage for story in stories for passage in passages(story, word)]
    return (*told, *N_TAUGHT * sentences)
