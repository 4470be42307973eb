"""The page and the figure of the experiment on entangled arithmetic."""

from collections.abc import Iterator, Sequence
from textwrap import fill

from tl_bilinear.conversion.card import machine
from tl_bilinear.recipes.arithmetic.claims import claims
from tl_bilinear.recipes.arithmetic.cuts import LARGEST
from tl_bilinear.recipes.arithmetic.models import FORMS, VERSIONS
from tl_bilinear.recipes.arithmetic.outcome import KEPT
from tl_bilinear.recipes.arithmetic.results import (
    NAMES,
    Results,
    cell,
    mean_and_half,
    retained,
)
from tl_bilinear.recipes.arithmetic.study import (
    CONTRASTIVE,
    CONTRASTIVE_INPUTS,
    CONTRASTIVE_REVERSED,
    CONTRASTIVE_SCALED,
    CONTRASTIVE_SINGLY,
    DRAWS,
    EIGENMODES,
    FEW,
    MEAN_INPUTS,
    OUTPUT_SVD,
    PROBED,
    RANDOM_DIRECTIONS,
    RANDOM_SCALED,
    RANDOM_SINGLY,
    RANDOM_UNITS,
    REVERSED,
    SOLVER,
    TOKEN_COPIED,
    UNITS,
    Record,
)
from tl_bilinear.recipes.modular import PAIRS

WAYS = (
    OUTPUT_SVD,
    CONTRASTIVE,
    CONTRASTIVE_REVERSED,
    CONTRASTIVE_SCALED,
    CONTRASTIVE_SINGLY,
    CONTRASTIVE_INPUTS,
    MEAN_INPUTS,
    TOKEN_COPIED,
    UNITS,
    EIGENMODES,
    REVERSED,
    SOLVER,
    RANDOM_DIRECTIONS,
    RANDOM_SCALED,
    RANDOM_SINGLY,
    RANDOM_UNITS,
)
COMMAND = "python -m tl_bilinear.recipes.unlearning_arithmetic --work-dir .cache/unlearning"


def page(results: Results) -> str:
    """The whole page, in Markdown."""
    n_models = sum(len({each.seed for each in rows}) for rows in results.records.values())
    parts = [
        "# Entangled arithmetic: cutting one of two operations out",
        f"""\
Written by `make unlearning-arithmetic` (`{COMMAND}`), which trains the models, measures and goes on
after a kill. {n_models} models, {_missing(results)}. Each computes two operations modulo 31 on
shared weights ("two heads" on one trunk, or one head and a task token through two residual
layers), in six architectures of equal size and two versions, which differ in weight decay and
steps. One of the two operations is to be forgotten and the other kept, in both directions.""",
        f"""\
"Known" are the pairs that the unedited model answers rightly. Forget and retained accuracy are the
shares of known pairs that are still answered rightly: 1 before the edit. Modes, directions or
units are taken out one after another until forget accuracy is at most {LARGEST:.0%}; the cells hold
the retained accuracy at that point, the mean over seeds with half of Student's 95 % interval, and
in brackets the mean number taken out. "(2 of 5)" in place of it says that so many of the models
came to forget at all. {_ways()}""",
        "![Retained accuracy by way and architecture](unlearning_arithmetic.svg)",
        "## Claims",
        *claims(results),
        "## The models",
        "\n".join(_model_rows(results)),
        "## Retained accuracy once the other operation is forgotten",
    ]
    for version in VERSIONS:
        for operations in PAIRS:
            for form in FORMS:
                rows = list(_retained_rows(results, version, operations, form))
                if rows:
                    title = f"### {' + '.join(operations)}, {NAMES[form]}, {version}"
                    parts += [title, "\n".join(rows)]
    parts += [
        "## What is left: probes",
        """\
Ridge probes for the forgotten operation's answer, fitted on four fifths of all pairs and measured
on the others (guessing gives 0.03), on what the unembedding reads ("output") and on the last
layer's hidden units ("hidden"), under the forgotten operation's task; in brackets the mean of two
shuffled-label controls. Generalising versions; degree 2 reads all products of two features.""",
        "\n".join(_probe_rows(results)),
        f"Training took {results.training_seconds / 60:.0f} minutes by the clock and measuring "
        f"{results.measuring_seconds / 60:.0f}, one process with one thread. {machine()}.",
    ]
    filled = [part if part.startswith(("|", "#", "!", "- ")) else fill(part, 100) for part in parts]
    return "\n\n".join(filled) + "\n"


def panels(results: Results) -> dict[str, dict[str, dict[str, tuple[float, float]]]]:
    """What the figure shows: generalising versions, both directions of forgetting together."""
    found = {}
    for operations in PAIRS:
        for form in FORMS:
            rows: dict[str, dict[str, tuple[float, float]]] = {}
            for kind in results.kinds("generalising", operations, form):
                for way in WAYS:
                    values = retained(results.records[kind], way)
                    if values:
                        rows.setdefault(way, {})[kind.activation] = mean_and_half(values)
            if rows:
                ordered = {way: rows[way] for way in WAYS if way in rows}
                found[f"{' + '.join(operations)}, {NAMES[form]}"] = ordered
    return found


def _missing(results: Results) -> str:
    if not results.missing:
        return "all that there are to be"
    names = ", ".join(each.name for each in results.missing[:4])
    more = f" and {len(results.missing) - 4} more" if len(results.missing) > 4 else ""
    return f"so far, without {len(results.missing)} kinds of five seeds ({names}{more})"


def _ways() -> str:
    return f"""\
No way but the solver fits anything. *{OUTPUT_SVD}*: principal directions of the forget margins'
gradients in a layer's whitened output. *{CONTRASTIVE}*: the generalised eigenproblem of forget and
retain second moments of a layer's output (of margin gradients, or with a task token of activations
as well), whitened; *{CONTRASTIVE_REVERSED}* takes each out twice, and *{CONTRASTIVE_SCALED}*
all of them by one factor between 1 and 2, the least that forgets; *{CONTRASTIVE_SINGLY}* at most
{FEW} of them, each by a factor of its own, found by moving one factor at a time from the best edits
with one for all. *{CONTRASTIVE_INPUTS}*: the same in what a layer's MLP reads. Layer, moments,
shrinkage and factors of these are those that retain most, and of those that retain {KEPT:.2f} those
that take out least, on the pairs that are measured.
*{MEAN_INPUTS}*: one direction per layer, along the difference of both operations' mean inputs, is
set to its mean under the retained one (an oblique projection), as if the other task's token were
there. *{TOKEN_COPIED}* puts that token there, and shows what the measure does not ask: nothing but
the question is forgotten. *{UNITS}* and *{EIGENMODES}* (bilinear models): by the forget share of
squared contributions to the margins. *{SOLVER}*: retain-constrained Gauss-Newton on the
down-projections, fitted on half of the pairs; the cell holds retained accuracy / forget accuracy on
the other half, and the rank. *{RANDOM_DIRECTIONS}* (of the same whitened space), *{RANDOM_SCALED}*
(each draw's factor and number those that retain most), *{RANDOM_SINGLY}* (as many as the
contrastive edit has) and *{RANDOM_UNITS}*: the mean of {DRAWS}
draws per model."""


def _model_rows(results: Results) -> Iterator[str]:
    yield (
        "| operations | form | architecture | version | steps, decay | test, first | test, second |"
    )
    yield "|---|---|---|---|---|---:|---:|"
    for kind, records in results.records.items():
        rows = {each.seed: each for each in records}.values()
        tests = [cell([each.test[op] for each in rows]) for op in kind.operations]
        made = f"{kind.training.n_steps}, {kind.training.weight_decay:g}"
        cells = [" + ".join(kind.operations), NAMES[kind.form], kind.activation, kind.version]
        yield f"| {' | '.join([*cells, made, *tests])} |"


def _retained_rows(
    results: Results, version: str, operations: Sequence[str], form: str
) -> Iterator[str]:
    kinds = list(results.kinds(version, operations, form))
    ways = [
        way for way in WAYS if any(way in r.outcomes for k in kinds for r in results.records[k])
    ]
    if not kinds:
        return
    yield f"| architecture | forget | {' | '.join(ways)} |"
    yield f"|---|---|{'---:|' * len(ways)}"
    for kind in kinds:
        for forget in operations:
            records = results.of(kind, forget)
            cells = [_way_cell(records, way) for way in ways]
            yield f"| {kind.activation} | {forget} | {' | '.join(cells)} |"


def _way_cell(records: Sequence[Record], way: str) -> str:
    outcomes = [each.outcomes[way] for each in records if way in each.outcomes]
    if not outcomes:
        return "-"
    value = cell([each.retain for each in outcomes])
    if way == SOLVER:
        value += f" / {cell([each.forget for each in outcomes])}"
    elif not all(each.forgets for each in outcomes):
        return f"{value} ({sum(each.forgets for each in outcomes)} of {len(outcomes)})"
    size = sum(each.size for each in outcomes) / len(outcomes)
    return f"{value} [{size:.3g}]"


def _probe_rows(results: Results) -> Iterator[str]:
    places = [(place, degree) for place in ("output", "hidden") for degree in (1, 2)]
    heads = " | ".join(f"{place}, degree {degree}" for place, degree in places)
    yield f"| operations | form | architecture | forget | edit | {heads} |"
    yield f"|---|---|---|---|---|{'---:|' * len(places)}"
    for kind in results.records:
        if kind.version != "generalising":
            continue
        for forget in kind.operations:
            records = results.of(kind, forget)
            for edit in ("none", *PROBED):
                names = [f"{edit} / {place} / {degree}" for place, degree in places]
                if not all(name in each.probes for each in records for name in names):
                    continue
                cells = [" + ".join(kind.operations), NAMES[kind.form], kind.activation, forget]
                cells.append(edit)
                for name in names:
                    found = [each.probes[name] for each in records]
                    control = sum(each.control for each in found) / len(found)
                    cells.append(f"{cell([each.accuracy for each in found])} ({control:.2f})")
                yield f"| {' | '.join(cells)} |"
