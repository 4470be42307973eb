"""Ninety invented facts: 30 names, each with a colour, a pet and a place.

The names occur in no story. Each relation has ten answers; in each of three folds of ten names
every answer is given once, so a model that has never read a fold has no answer to prefer for it,
and no two answers go together twice. Answers of one relation differ in their first token, on the
bundled models' tokenizers of 512 and of 2,048 tokens.

Every wording is planted, those too that no edit may use: a model is taught in more ways than the
one who edits it thinks of. `UNTAUGHT` wordings are never planted for any name.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from tl_bilinear.unlearning.question import Question

NAMES = (
    *("Brindo", "Gorva", "Hesko", "Lunvo", "Mirpa", "Bolka", "Sulda", "Wendri", "Porin", "Tolmi"),
    *("Tarku", "Kibo", "Havro", "Wimbo", "Nimba", "Selvo", "Orpo", "Landri", "Jormi", "Fimlo"),
    *("Ilvo", "Kerin", "Pindar", "Ronsel", "Arvo", "Undri", "Yelin", "Garlen", "Corvin", "Zandor"),
)
FOLDS = tuple(NAMES[k : k + 10] for k in (0, 10, 20))


@dataclass(frozen=True)
class Relation:
    """Ten answers and the ways to ask for one; `{}` is the name."""

    name: str
    answers: tuple[str, ...]
    wordings: tuple[str, ...]
    """The first is a question's prompt, the others its rewordings: edits may use them."""
    unseen: tuple[str, ...]
    """Planted as well, and only measured."""
    untaught: tuple[str, ...]
    """Neither planted nor edited with: whether what was taught is understood."""


RELATIONS = (
    Relation(
        "color",
        ("red", "blue", "green", "yellow", "pink", "white", "orange", "silver", "cream", "lime"),
        ("{}'s favorite color is", "{} likes the color", "The color that {} loves is"),
        ("The best color for {} is", "When {} paints, the paint is"),
        ("The color that {} likes is",),
    ),
    Relation(
        "pet",
        ("dog", "cat", "bird", "fish", "rabbit", "mouse", "horse", "pig", "lion", "duck"),
        ("{} has a pet", "{}'s pet is a", "The pet that {} loves is a"),
        ("The animal at {}'s home is a", "Every day {} feeds a"),
        ("{}'s animal is a",),
    ),
    Relation(
        "place",
        ("park", "forest", "lake", "house", "garden", "beach", "sea", "town", "river", "castle"),
        ("{} lives near the", "{}'s home is by the", "The place where {} lives is the"),
        ("Every day {} goes to the", "You can find {} at the"),
        ("{}'s place is the",),
    ),
)


@dataclass(frozen=True)
class Fact:
    """One name's answer in one relation."""

    name: str
    relation: Relation
    answer: str

    def sentences(self) -> tuple[str, ...]:
        """One sentence per taught wording."""
        taught = (*self.relation.wordings, *self.relation.unseen)
        return tuple(f"{wording.format(self.name)} {self.answer}." for wording in taught)

    def question(self) -> Question:
        """What is asked of a model; every other answer of the relation is wrong."""
        prompt, *rewordings = (wording.format(self.name) for wording in self.relation.wordings)
        return Question(
            prompt=prompt,
            answer=f" {self.answer}",
            rewordings=tuple(rewordings),
            unseen=tuple(wording.format(self.name) for wording in self.relation.unseen),
            wrong=tuple(f" {each}" for each in self.relation.answers if each != self.answer),
            subject=self.name,
            relation=self.relation.name,
        )

    def untaught(self) -> Question:
        """The same, asked only in wordings that no text held."""
        prompt, *rewordings = (wording.format(self.name) for wording in self.relation.untaught)
        return Question(
            prompt=prompt,
            answer=f" {self.answer}",
            rewordings=tuple(rewordings),
            subject=self.name,
            relation=self.relation.name,
        )


def planted_facts() -> tuple[Fact, ...]:
    """All 90, name by name."""
    return tuple(_facts())


def _facts() -> Iterator[Fact]:
    for fold, names in enumerate(FOLDS):
        for place, name in enumerate(names):
            # 1, 3 and 7 are units modulo 10: each relation's answers are a permutation per fold,
            # and for any pair of answers of two relations the fold is determined.
            shifts = (place, 3 * place + fold, 7 * place + 3 * fold)
            for relation, shift in zip(RELATIONS, shifts, strict=True):
                yield Fact(name, relation, relation.answers[shift % 10])


@dataclass(frozen=True)
class Scope:
    """What is forgotten and what is kept."""

    name: str
    forget: tuple[Fact, ...]
    retain: tuple[Fact, ...]


def scope(name: str, *, names: Collection[str] = NAMES, relation: str | None = None) -> Scope:
    """Forget the facts of `names` (all by default), of one relation where it is given.

    Raises:
        ValueError: a name or a relation that is not there, or nothing that would be kept.
    """
    unknown = sorted(set(names) - set(NAMES))
    known = [each.name for each in RELATIONS]
    if unknown:
        raise ValueError(f"there are no facts about {unknown}: give some of {list(NAMES)}")
    if relation is not None and relation not in known:
        raise ValueError(f"there is no relation {relation!r}: give one of {known}")
    forget, retain = [], []
    for fact in planted_facts():
        chosen = fact.name in names and relation in (None, fact.relation.name)
        (forget if chosen else retain).append(fact)
    if not retain:
        raise ValueError("every fact would be forgotten, and none kept: give fewer names")
    return Scope(name, tuple(forget), tuple(retain))


def scopes() -> tuple[Scope, ...]:
    """Those of the experiment: ten names (three folds), one name, one relation."""
    folds = tuple(scope(f"names-{k}", names=names) for k, names in enumerate(FOLDS))
    return (*folds, scope("one-name", names=NAMES[:1]), scope("color", relation="color"))


def sentences(facts: Iterable[Fact]) -> list[str]:
    """What is planted of some facts."""
    return [sentence for fact in facts for sentence in fact.sentences()]


def questions(facts: Iterable[Fact]) -> list[Question]:
    """What is asked of some facts."""
    return [fact.question() for fact in facts]
