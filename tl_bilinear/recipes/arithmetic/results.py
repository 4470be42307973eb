"""All records of the experiment, and the figures that its page and its claims share."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tl_bilinear.recipes.arithmetic.models import Kind
from tl_bilinear.recipes.arithmetic.study import SOLVER, Record
from tl_bilinear.recipes.interval import student_interval

NAMES = {"heads": "two heads", "token": "task token"}


@dataclass(frozen=True)
class Results:
    """Records by kind, those of all seeds and both directions together."""

    records: dict[Kind, tuple[Record, ...]]
    missing: tuple[Kind, ...]
    """Kinds that are not trained yet."""
    training_seconds: float = 0.0
    """By the clock, for all models together, one after another."""

    @property
    def measuring_seconds(self) -> float:
        """The same for all records."""
        return sum(each.seconds for records in self.records.values() for each in records)

    def of(self, kind: Kind, forget: str) -> tuple[Record, ...]:
        """One direction of forgetting."""
        return tuple(each for each in self.records.get(kind, ()) if each.forget == forget)

    def kinds(self, version: str, operations: Sequence[str], form: str) -> Iterator[Kind]:
        """One kind per architecture."""
        for kind in self.records:
            if (kind.version, kind.operations, kind.form) == (version, tuple(operations), form):
                yield kind


def retained(records: Iterable[Record], way: str) -> list[float]:
    """By seed the retained accuracy, the mean over the directions of forgetting; 0 where the way
    does not come to forget. The solver's held-out accuracy stands as it is: its edit is one
    point and no path."""
    seeds: dict[int, list[float]] = {}
    for record in records:
        if way in record.outcomes:
            outcome = record.outcomes[way]
            counts = way == SOLVER or outcome.forgets
            seeds.setdefault(record.seed, []).append(outcome.retain if counts else 0.0)
    return [sum(each) / len(each) for each in seeds.values()]


def mean_and_half(values: Sequence[float]) -> tuple[float, float]:
    """The mean and half of Student's interval, which for one value is 0."""
    if len(values) == 1:
        return values[0], 0.0
    interval = student_interval(values)
    return interval.mean, interval.half


def cell(values: Sequence[float]) -> str:
    """As "0.97 ± 0.02", with three digits where two would round the mean up to 1."""
    mean, half = mean_and_half(values)
    digits = 3 if 0.985 <= mean < 1 else 2
    text = f"{mean:.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {half:.{digits}f}"
