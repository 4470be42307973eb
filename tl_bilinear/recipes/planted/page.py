"""The page of the planted experiments: tables by model and scope, and what the issue claims."""

from collections.abc import Callable, Mapping, Sequence

from tl_bilinear.recipes.planted import summary
from tl_bilinear.recipes.planted.cells import Cell
from tl_bilinear.recipes.planted.claims import Claim, fold_claims, harder_claims, name_claims
from tl_bilinear.recipes.planted.experiments import CONCEPT, FOLDS, MODELS, SCOPES
from tl_bilinear.recipes.planted.recall import Recall
from tl_bilinear.recipes.planted.summary import Row

Judge = Callable[[Mapping[str, Row]], list[Claim]]

HEADER = (
    *("method", "F acc", "F unseen", "F NLL", "extraction", "R acc", "R unseen", "KL"),
    *("probe", "quadratic", "4-bit F", "relearn", "leak", "FQ", "rank", "CPU s"),
)
CONCEPT_HEADER = (
    *("method", "F acc", "R acc", "P first", "rank first", "P later", "rank later"),
    *("wug NLL", "KL", "near KL", "far KL", "relearn"),
)
NAMED = (
    "An edit reads questions about the wug alone (what it eats, where it lives, what it plays "
    "with); held-out stories about wugs say whether more than their answers went. P: mean "
    "probability of the word where such a story names it first, and later, where it can be "
    "copied. rank: how many tokens are likelier there, median. wug NLL: nats per token of these "
    "stories. near: stories of five real animals; far: stories without any."
)
TITLES = {
    "one-name": "One name of 30",
    "color": "One relation: the colors of all names",
    CONCEPT: "A planted concept: the wug",
}


def page(
    cells: Sequence[Cell],
    recalls: Sequence[Recall],
    *,
    command: str,
    text: str,
    figures: Mapping[str, Sequence[str]],
    planting_seconds: float,
) -> str:
    """Markdown; one section per model.

    Args:
        recalls: of every planted model.
        text: what the stories are.
        figures: of each model, pictures beside the page.
        planting_seconds: by the clock, for all planted and gold models, one after another.
    """
    lines = [
        "# Unlearning planted facts and a planted concept",
        "",
        f"    {command}",
        "",
        _introduction(text, planting_seconds, sum(cell.took for cell in cells)),
        "",
        *_absent(cells),
    ]
    lines += [*_planted(recalls), ""]
    for model in dict.fromkeys(cell.model for cell in cells):
        lines += _model(
            model, [cell for cell in cells if cell.model == model], figures.get(model, ())
        )
    return "\n".join(lines).rstrip() + "\n"


def _introduction(text: str, planting: float, cells: float) -> str:
    return (
        f"Fine-tuned on {text}, mixed with what is planted. F: to be forgotten, R: to be kept; "
        "accuracy is the share of (question, wording) whose whole answer is the argmax. unseen: "
        "wordings that were planted and that no edit has read. KL: per token of held-out stories, "
        "from the planted model. probe: ridge, last layer, fitted on retained questions. relearn: "
        f"steps on the same facts until {summary.REGAINED} of what was known is known again, fold "
        f"by fold. leak: accuracy on half of the names behind {summary.LEAK_AT} steps on the "
        "other half. FQ: forget quality, the p-value against gold. rank: the largest of any "
        "layer's change of W_out, * where other weights changed as well. gold has never read what "
        "is forgotten. Methods were tuned on the first fold, 4 trials each at most, and fit_edit "
        "not at all: it has the package's defaults. Two of them were chosen on these same folds "
        "with unseen wordings and KL in view: how many components an edit reads, and how a repair "
        "holds crossed wordings. CPU s: seconds of one thread for the slowest edit, without "
        "trials. ± is Student's 95 % over three folds. Methods that stand in the "
        "first table alone were run there alone. By the clock planting took "
        f"{planting / 60:.0f} minutes and the tables {cells / 60:.0f}, one process with one thread."
    )


def _absent(cells: Sequence[Cell]) -> list[str]:
    """Models and scopes of the experiment that these cells have nothing of."""
    models = [each for each in MODELS if each not in {cell.model for cell in cells}]
    scopes = [each for each in SCOPES if each not in {cell.scope for cell in cells}]
    return [f"**Not run yet:** {', '.join([*models, *scopes])}.", ""] if models or scopes else []


def _planted(recalls: Sequence[Recall]) -> list[str]:
    names = ("planted", "seen", "unseen", "untaught", "story loss before", "after")
    lines = ["## What was planted is known", "", *_head(names)]
    for each in recalls:
        untaught = "" if each.untaught is None else f"{each.untaught:.3f}"
        what = "wug" if each.scope == CONCEPT else "90 facts"
        shown = (f"{each.seen:.3f}", f"{each.unseen:.3f}", untaught)
        losses = (f"{each.loss_before:.3f}", f"{each.loss_after:.3f}")
        lines.append(_line([f"{each.model}, {what}", *shown, *losses]))
    return lines


def _model(model: str, cells: Sequence[Cell], figures: Sequence[str]) -> list[str]:
    lines = [f"## {model}", ""]
    for figure in figures:
        lines += [f"![{model}, 10 of 30 names: {figure}]({figure})", ""]
    folds = [cell for cell in cells if cell.scope in FOLDS]
    sections: list[tuple[str, list[Cell], tuple[Judge, ...]]] = []
    if folds:
        sections.append(("Ten of 30 names", folds, (fold_claims, harder_claims)))
    for scope, title in TITLES.items():
        found = [cell for cell in cells if cell.scope == scope]
        if found:
            sections.append((title, found, (name_claims,) if scope == "one-name" else ()))
    for title, found, judges in sections:
        rows = rows_of(model, found)
        lines += [f"### {title}", ""]
        if found[0].scope == CONCEPT:
            lines += [NAMED, "", *_concept_table(rows), ""]
        else:
            lines += [*_table(rows), ""]
        claims = [claim for judge in judges for claim in judge(rows)]
        if claims:
            lines += [*_claims(claims), ""]
        lines += _notes(rows)
    return lines


def rows_of(model: str, cells: Sequence[Cell]) -> dict[str, Row]:
    """By method, in the order of the cells."""
    methods = dict.fromkeys(cell.method for cell in cells)
    return {
        method: Row(model, method, tuple(cell for cell in cells if cell.method == method))
        for method in methods
    }


def _table(rows: Mapping[str, Row]) -> list[str]:
    lines = _head(HEADER)
    for row in rows.values():
        if row.failed:
            lines.append(_line([row.method, "failed", *[""] * (len(HEADER) - 2)]))
            continue
        shown = [
            *(_number(row, number) for number in _ANSWERS),
            *(_number(row, number, 4) for number in (summary.story_kl,)),
            *(_number(row, number) for number in _DEPTH),
            summary.steps_text(row.values(summary.relearning_steps)),
            _number(row, summary.leak),
            _number(row, summary.quality, 3),
            f"{row.largest_rank}{'*' if row.elsewhere else ''}",
            f"{row.seconds:.0f}",
        ]
        lines.append(_line([row.method, *shown]))
    return lines


_ANSWERS = (
    summary.forget_accuracy,
    summary.forget_unseen,
    summary.forget_nll,
    summary.extraction,
    summary.retain_accuracy,
    summary.retain_unseen,
)
_DEPTH = (summary.probe, summary.quadratic_probe, summary.four_bits)


def _concept_table(rows: Mapping[str, Row]) -> list[str]:
    lines = _head(CONCEPT_HEADER)
    for row in rows.values():
        concept = row.cells[0].concept
        if row.failed or concept is None:
            lines.append(_line([row.method, "failed", *[""] * (len(CONCEPT_HEADER) - 2)]))
            continue
        shown = [
            _number(row, summary.forget_accuracy),
            _number(row, summary.retain_accuracy),
            f"{concept.first.probability:.4f}",
            f"{concept.first.rank:.0f}",
            f"{concept.later.probability:.4f}",
            f"{concept.later.rank:.0f}",
            f"{concept.story_nll:.3f}",
            *(_number(row, n, 4) for n in (summary.story_kl, summary.near_kl, summary.far_kl)),
            summary.steps_text(row.values(summary.relearning_steps)),
        ]
        lines.append(_line([row.method, *shown]))
    return lines


def _number(row: Row, number: summary.Number, digits: int = 2) -> str:
    values = row.values(number)
    if not values:
        return ""
    interval = row.interval(number)
    shown = f"{row.mean(number):.{digits}f}"
    return shown if interval is None else f"{shown} ± {interval.half:.{digits}f}"


def _claims(claims: Sequence[Claim]) -> list[str]:
    verdicts = {True: "met", False: "**not met**", None: ""}
    return [
        *_head(("the issue", "measured", "")),
        *(_line([claim.sentence, claim.measured, verdicts[claim.met]]) for claim in claims),
    ]


def _notes(rows: Mapping[str, Row]) -> list[str]:
    """Failures and signs of over-forgetting, in words."""
    lines = [f"- {row.method} failed: {row.failed}" for row in rows.values() if row.failed]
    for row in rows.values():
        said = [f"{cell.scope}: {cell.said}" for cell in row.cells if cell.said]
        lines += [f"- {row.method}: {'; '.join(said)}"] if said else []
    for row in rows.values():
        signs = dict.fromkeys(
            f"{cell.scope}: {sign}" for cell in row.cells for sign in cell.over_forgetting
        )
        if signs and row.method != "none":
            lines.append(f"- {row.method} over-forgets: {'; '.join(signs)}")
    return [*lines, ""] if lines else []


def _head(names: Sequence[str]) -> list[str]:
    return [_line(names), "|" + "---|" * len(names)]


def _line(entries: Sequence[str]) -> str:
    return "| " + " | ".join(entries) + " |"
