"""`UnlearningReport`: what an edit removed, what it cost, what is left, and what is not known."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from tl_bilinear.hosts.provenance import Provenance
from tl_bilinear.optimisation.files import replace_file
from tl_bilinear.recipes.interval import Interval, student_interval
from tl_bilinear.unlearning.dose import DosePoint
from tl_bilinear.unlearning.measure import ModelScores
from tl_bilinear.unlearning.methods import Kind
from tl_bilinear.unlearning.passes import Passes
from tl_bilinear.unlearning.plain_data import from_plain, to_plain
from tl_bilinear.unlearning.tuning import Trial

FORMAT = 2
REGAINED = 0.9
"""Of the accuracy before the edit: from there a forgotten set counts as relearnt."""

Number = Callable[[ModelScores], float | None]


@dataclass(frozen=True)
class Missing:
    """Something that could not be computed."""

    what: str
    why: str


@dataclass(frozen=True)
class MethodResult:
    """One way to unlearn, tuned once and run with every seed."""

    method: str
    source: str
    kind: Kind
    settings: tuple[tuple[str, str], ...]
    """The chosen ones, as text."""
    trials: tuple[Trial, ...]
    passes: Passes
    """Of all trials together: the tuning budget spent."""
    scores: tuple[ModelScores, ...]
    """One per seed."""
    seconds: tuple[float, ...]
    """Of the edit, per seed."""
    said: tuple[str, ...] = ()
    """What the method said of the edit, per seed; empty where it says nothing."""

    def values(self, number: Number) -> tuple[float, ...]:
        """One number of every seed that has it."""
        return tuple(value for scores in self.scores if (value := number(scores)) is not None)

    def interval(self, number: Number) -> Interval | None:
        """Mean and 95 % interval over the seeds; half-width NaN of one seed, None of none."""
        values = self.values(number)
        if not values:
            return None
        if len(values) == 1:
            return Interval(values[0], float("nan"))
        if len(values) > 10:
            return Interval(fmean(values), float("nan"))
        return student_interval(values)


@dataclass(frozen=True)
class UnlearningReport:
    """The whole procedure, with the numbers that a critic asks for."""

    result: MethodResult
    baselines: tuple[MethodResult, ...]
    """Tuned at the same budget on the same criterion; measured in brief."""
    before: ModelScores
    """The unedited model, measured once (seed 0)."""
    gold: ModelScores | None
    """A model trained without the forget set, measured once; None where none was given."""
    dose: tuple[DosePoint, ...]
    """The first seed's edit, scaled."""
    over_forgetting: tuple[str, ...]
    """Where an edit, of any seed, went below a model that never learnt: it is itself detectable."""
    missing: tuple[Missing, ...]
    n_forget: int
    n_retain: int
    n_texts: int
    seeds: int
    criterion: str
    seconds: float
    """Of the whole procedure."""
    provenance: Provenance
    """Of the unedited model."""
    format: int = FORMAT
    model: Any = field(default=None, repr=False, compare=False, metadata={"plain": False})
    """The edited copy (first seed's); None in a report that was read from a file."""

    def relearn_steps(self, scores: ModelScores, lesson: str) -> int | None:
        """Steps of a lesson until 0.9 of the accuracy before the edit; None where never."""
        level = REGAINED * self.before.forget.answers.accuracy
        curve = next((c for c in scores.relearning if c.lesson == lesson), None)
        return None if curve is None else curve.steps_to(level)

    def to_json(self) -> str:
        """Everything but the edited model."""
        return json.dumps(to_plain(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "UnlearningReport":
        """The report of `to_json`, without its model.

        Raises:
            ValueError: text that is no such report.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"this is no JSON ({error})") from None
        if isinstance(data, dict) and data.get("format", FORMAT) != FORMAT:
            raise ValueError(f"a report of format {data['format']}; this version reads {FORMAT}")
        return from_plain(cls, data)

    def to_markdown(self) -> str:
        """The tables as Markdown."""
        from tl_bilinear.unlearning.report_tables import markdown

        return markdown(self)

    def to_html(self) -> str:
        """One page with plots, offline; needs the `views` extra."""
        from tl_bilinear.unlearning.report_page import report_page

        return report_page(self)

    def save_html(self, path: str | Path) -> Path:
        """Write the page, whole or not at all, and return its absolute path.

        Raises:
            OSError: the file cannot be written.
        """
        target = Path(path).expanduser().resolve()
        replace_file(target, self.to_html().encode("utf-8"))
        return target

    def save_json(self, path: str | Path) -> Path:
        """Write `to_json`, whole or not at all, and return the absolute path."""
        target = Path(path).expanduser().resolve()
        replace_file(target, self.to_json().encode("utf-8"))
        return target
