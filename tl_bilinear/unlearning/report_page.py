"""The report as one page: sentences, plots as inline SVG, tables; offline."""

from collections.abc import Callable, Sequence

from tl_bilinear.unlearning import report_tables
from tl_bilinear.unlearning.measure import ModelScores
from tl_bilinear.unlearning.plain_data import to_plain
from tl_bilinear.unlearning.report import MethodResult, UnlearningReport
from tl_bilinear.unlearning.report_tables import LESSONS, ReportTable
from tl_bilinear.views import Page, table
from tl_bilinear.views.text import escape, visible
from tl_bilinear.views.unlearning import (
    Dot,
    Line,
    MethodBar,
    dose_figure,
    lines_figure,
    methods_figure,
)

WORDS = (
    (
        "Forget set, retain set",
        "Questions that the edit was to remove, and questions that it was to keep. Near and far: "
        "close to what was forgotten, and far from it.",
    ),
    (
        "Known, accuracy",
        "A question is known in a wording where every token of its answer is the model's most "
        "likely one, the tokens before it being given. Accuracy is the share of rows, one per "
        "question and wording, that are known.",
    ),
    (
        "Gold",
        "A model trained without the forget set: what perfect forgetting looks like. An edited "
        "model that says less than gold has over-forgotten, which can be detected.",
    ),
    (
        "KL per token",
        "How far the next-token distribution on held-out text is from the unedited model's, in "
        "nats.",
    ),
    (
        "Masking, removal",
        "Masking can be undone from the saved files alone (extra neurons can be deleted); removal "
        "cannot. A hook that is attached while the model runs is neither: it can be taken off.",
    ),
)


def report_page(report: UnlearningReport) -> str:
    """The whole page as HTML, in one self-contained file."""
    page = Page(f"Unlearning: {report.provenance.model}")
    page.add(_head(report))
    page.add(_section("1. What is left of the forget set", report_tables.forget_table(report)))
    page.add(_section("2. What was to be kept", report_tables.retain_table(report)))
    page.add(_table(report_tables.text_table(report)))
    page.add("<h2>3. Relearning</h2>", _relearning(page, report))
    page.add("<h2>4. What the layers still say</h2>", _depth(page, report))
    page.add(_section("5. Rounded weights", report_tables.rounding_table(report)))
    page.add("<h2>6. Dose</h2>", _dose(page, report))
    page.add("<h2>7. Methods side by side</h2>", _methods(page, report))
    page.add(_section("8. What was not computed", report_tables.missing_table(report), 2))
    page.add("<h2>9. Where all this comes from</h2>", _origin(report))
    page.data("report-data", to_plain(report))
    return page.html()


def _head(report: UnlearningReport) -> str:
    items = "".join(f"<li>{escape(visible(each))}</li>" for each in report_tables.headline(report))
    words = "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in WORDS)
    title = f"Unlearning in {visible(report.provenance.model)}"
    return (
        f'<h1>{escape(title)}</h1><div class="summary"><ul>{items}</ul></div>'
        f'<h2>Words used on this page</h2><dl class="words">{words}</dl>'
    )


def _section(title: str, found: ReportTable, text_columns: int = 2) -> str:
    if not found.rows:
        return f"<h2>{escape(title)}</h2><p>Nothing: see what was not computed.</p>"
    return f"<h2>{escape(title)}</h2>" + _table(found, text_columns)


def _table(found: ReportTable, text_columns: int = 2) -> str:
    note = f'<p class="note">{escape(found.note)}</p>' if found.note else ""
    # Wide tables of many numbers: narrow columns.
    dense = len(found.header) > 7
    return table(found.header, found.rows, text_columns=text_columns, dense=dense) + note


def _relearning(page: Page, report: UnlearningReport) -> str:
    panels: dict[str, list[Line]] = {}
    for lesson, title in (("facts", "same facts"), ("half", "other half"), ("text", "text alone")):
        lines = _lines(report, lambda s, lesson=lesson: _curve(s, lesson))
        if lines:
            panels[title] = lines
    if not panels:
        return "<p>Nothing: see what was not computed.</p>"
    alt = "Accuracy on the forgotten questions against steps of relearning, one panel per lesson."
    figure = lines_figure(panels, "steps", "known again")
    taught = "; ".join(LESSONS.values())
    return (
        f"<p>A copy of each model is taught again: {escape(taught)}.</p>"
        + page.figure(figure, alt)
        + _table(report_tables.relearning_table(report))
    )


def _depth(page: Page, report: UnlearningReport) -> str:
    found = report_tables.depth_table(report)
    if not found.rows:
        return "<p>Nothing: see what was not computed.</p>"
    html = ""
    probes = {
        "linear probe": _lines(report, lambda s: _probe(s, 1)),
        "quadratic probe": _lines(report, lambda s: _probe(s, 2)),
    }
    if all(probes.values()):
        alt = "Accuracy of probes for the forgotten answers behind each layer."
        html += page.figure(lines_figure(probes, "layer", "forgotten answers found"), alt)
    ranks = {"logit lens": _lines(report, _ranks)}
    alt = "Median rank of the forgotten answer by the logit lens behind each layer."
    html += page.figure(lines_figure(ranks, "layer", "rank + 1 (median)", log_y=True), alt)
    return html + _table(found)


def _dose(page: Page, report: UnlearningReport) -> str:
    if not report.dose:
        return "<p>Nothing: see what was not computed.</p>"
    dots = [Dot(f"{p.scale:g}", p.forget_accuracy, p.cost, p.on_front) for p in report.dose]
    alt = "Forget accuracy against cost for the edit at several scales, the Pareto front joined."
    return page.figure(dose_figure(dots), alt) + _table(report_tables.dose_table(report), 1)


def _methods(page: Page, report: UnlearningReport) -> str:
    bars = [_bar("unedited", (report.before,), None)]
    if report.gold is not None:
        bars.append(_bar("gold", (report.gold,), None))
    for result in (report.result, *report.baselines):
        bars.append(_bar(result.method, result.scores, result))
    alt = "Forget accuracy, retained accuracy and KL of every method, with 95 % intervals."
    trials = report_tables.trial_table(report)
    return (
        page.figure(methods_figure(bars), alt)
        + _table(report_tables.method_table(report), 1)
        + "<h3>What tuning tried</h3>"
        + table(trials.header, trials.rows, text_columns=2, dense=True)
    )


def _origin(report: UnlearningReport) -> str:
    source = report.provenance
    rows = [
        ["model", f"{visible(source.model)}, fingerprint {source.fingerprint} (before the edit)"],
        ["read through", f"{source.host} of TransformerLens"],
        ["versions", source.versions],
        ["method", f"{report.result.method}: {report.result.source}"],
        ["settings", ", ".join(f"{n} {v}" for n, v in report.result.settings) or "none"],
        ["seeds, texts", f"{report.seeds}, {report.n_texts}"],
        ["seconds", f"{report.seconds:.0f} in all"],
    ]
    return table(["", ""], rows, text_columns=2) + (
        '<p class="note">All numbers of this page stand in it once more, unrounded, as JSON in the '
        "element with the id <code>report-data</code>. Limits: relearning and probes say what "
        "these lessons and these readers find; others may find more. Unseen wordings are the ones "
        "given, not all that exist.</p>"
    )


Points = tuple[tuple[float, ...], tuple[float, ...]] | None


def _lines(report: UnlearningReport, get: Callable[[ModelScores], Points]) -> list[Line]:
    found: list[Line] = []
    named: list[tuple[str, str, Sequence[ModelScores]]] = [
        ("unedited", "unedited", [report.before])
    ]
    named.append((report.result.method, "edited", report.result.scores))
    if report.gold is not None:
        named.append(("gold", "gold", [report.gold]))
    for name, role, scores in named:
        curves = [points for each in scores if (points := get(each)) is not None]
        if curves:
            # The mean over the seeds: their curves share their steps.
            mean = tuple(sum(ys) / len(ys) for ys in zip(*(y for _, y in curves), strict=True))
            found.append(Line(name, role, curves[0][0], mean))
    return found


def _curve(scores: ModelScores, lesson: str) -> Points:
    curve = next((c for c in scores.relearning if c.lesson == lesson), None)
    return None if curve is None else (tuple(map(float, curve.steps)), curve.accuracy)


def _probe(scores: ModelScores, degree: int) -> Points:
    probes = [p for p in scores.depth.probes if p.degree == degree] if scores.depth else []
    if not probes:
        return None
    return tuple(float(p.layer) for p in probes), tuple(p.accuracy for p in probes)


def _ranks(scores: ModelScores) -> Points:
    if scores.depth is None:
        return None
    ranks = scores.depth.lens_rank
    return tuple(map(float, range(len(ranks)))), ranks


def _bar(name: str, scores: Sequence[ModelScores], result: MethodResult | None) -> MethodBar:
    def value(number: Callable[[ModelScores], float]) -> tuple[float, float]:
        interval = result.interval(number) if result else None
        if interval is None:
            return number(scores[0]), 0.0
        return interval.mean, 0.0 if interval.half != interval.half else interval.half

    return MethodBar(
        name,
        value(lambda s: s.forget.answers.accuracy),
        value(lambda s: s.retain.answers.accuracy),
        value(lambda s: s.text.kl),
    )
