"""The planted models with their golds, and what each is asked to forget and to keep."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_bilinear.checkpoints import load
from tl_bilinear.checkpoints.bundled import beginning, bundled_stories
from tl_bilinear.recipes.planted.concept import concept, mentions
from tl_bilinear.recipes.planted.facts import Scope, planted_facts, questions, scopes, sentences
from tl_bilinear.recipes.planted.planting import PlantingConfig, Stories, plant
from tl_bilinear.unlearning.question import Question

MODELS = ("stories-5l", "stories-2l", "stories-5l-swiglu")
FOLDS = ("names-0", "names-1", "names-2")
CONCEPT = "wug"
SCOPES = (*FOLDS, "one-name", "color", CONCEPT)
N_EDIT, N_HELD_OUT, N_FAR = 60, 60, 40
N_CHARACTERS = 400
PASSAGES = PlantingConfig(rows=8, n_steps=1500)
"""The concept's texts are longer than a fact's sentence, and so fewer are read per step."""


@dataclass(frozen=True)
class Experiment:
    """One planted model, its gold, and the sets."""

    model: str
    """The bundled model that was planted."""
    scope: str
    planted: Path
    gold: Path
    forget: tuple[Question, ...]
    retain: tuple[Question, ...]
    near: tuple[Question | str, ...]
    far: tuple[Question | str, ...]
    edit_texts: tuple[str, ...]
    """Ordinary stories that an edit may read."""
    held_out_texts: tuple[str, ...]
    """Ordinary stories that KL is measured on."""
    first_mentions: tuple[str, ...] = ()
    """Beginnings of held-out stories up to where the concept is first named."""
    later_mentions: tuple[str, ...] = ()
    concept_stories: tuple[str, ...] = ()

    @property
    def identity(self) -> tuple[str, ...]:
        """What a result is kept for: the planted runs' names hold all that made them."""
        return (self.model, self.scope, self.planted.parent.name, self.gold.parent.name)

    @property
    def runs(self) -> tuple[Path, Path]:
        """The folders of both trainings."""
        return self.planted.parent, self.gold.parent

    def open(self, folder: Path) -> Any:
        """The planted or the gold model; a gated one with its own activation."""
        return load(str(folder), frozen_gates=True)


def experiments(
    models: Sequence[str],
    names: Sequence[str],
    stories: Stories,
    work_dir: Path,
    facts_config: PlantingConfig = PlantingConfig(),  # noqa: B008 (frozen)
    concept_config: PlantingConfig = PASSAGES,
) -> Iterator[Experiment]:
    """Plant what is missing, model by model, and give each experiment as its models are ready.

    Raises:
        ValueError: a model or a scope that is not there.
    """
    for given, known, what in ((models, MODELS, "model"), (names, SCOPES, "scope")):
        unknown = [each for each in given if each not in known]
        if unknown:
            raise ValueError(f"there is no {what} {unknown[0]!r}: give some of {', '.join(known)}")
    for model in models:
        for scope in scopes():
            if scope.name in names:
                yield _facts(model, scope, stories, work_dir, facts_config)
        if CONCEPT in names:
            yield _concept(model, stories, work_dir, concept_config)


def _facts(
    model: str, scope: Scope, stories: Stories, work_dir: Path, config: PlantingConfig
) -> Experiment:
    def planted(label: str, facts: Sequence[Any]) -> Path:
        return plant(model, sentences(facts), stories, work_dir, label=label, config=config)

    texts = _beginnings(bundled_stories())
    return Experiment(
        model=model,
        scope=scope.name,
        planted=planted("facts", planted_facts()),
        gold=planted(f"without-{scope.name}", scope.retain),
        forget=tuple(questions(scope.forget)),
        retain=tuple(questions(scope.retain)),
        near=(),
        far=_beginnings(stories.held_out)[:N_FAR],
        edit_texts=texts[:N_EDIT],
        held_out_texts=texts[-N_HELD_OUT:],
    )


def _concept(model: str, stories: Stories, work_dir: Path, config: PlantingConfig) -> Experiment:
    texts = _beginnings(bundled_stories())
    found = concept(stories, bundled_stories())
    first, later = mentions(found.forget_stories)

    def planted(label: str, passages: Sequence[str]) -> Path:
        return plant(model, passages, found.stories, work_dir, label=label, config=config)

    return Experiment(
        model=model,
        scope=CONCEPT,
        planted=planted("wug", found.planted),
        gold=planted("without-wug", found.near_texts),
        forget=found.forget,
        retain=found.near,
        near=_beginnings(found.near_stories)[:N_FAR],
        far=_beginnings(found.far_stories)[:N_FAR],
        edit_texts=texts[:N_EDIT],
        held_out_texts=texts[-N_HELD_OUT:],
        first_mentions=first,
        later_mentions=later,
        concept_stories=found.forget_stories,
    )


def _beginnings(stories: Sequence[str]) -> tuple[str, ...]:
    """Their first whole words: a cell has a minute."""
    return tuple(beginning(story, N_CHARACTERS) for story in stories)
