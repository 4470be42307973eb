"""The tables of a report, once for Markdown and for the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tl_bilinear.characters import visible
from tl_bilinear.unlearning.measure import AskedScores, KeptScores, ModelScores
from tl_bilinear.unlearning.metrics import forget_truth_ratio, retain_truth_ratio
from tl_bilinear.unlearning.report import MethodResult, Number, UnlearningReport

KINDS = {
    "none": "no edit",
    "masking": "masking: the saved files alone are enough to undo it",
    "removal": "removal: the saved files alone are not enough to undo it",
}
LESSONS = {
    "facts": "the same facts",
    "half": "half of them, measured on the other half",
    "text": "unrelated text",
}


@dataclass(frozen=True)
class ReportTable:
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def tables(report: UnlearningReport) -> tuple[ReportTable, ...]:
    """All of them, in order."""
    found = [
        forget_table(report),
        retain_table(report),
        text_table(report),
        relearning_table(report),
        rounding_table(report),
        depth_table(report),
        dose_table(report),
        method_table(report),
        trial_table(report),
        missing_table(report),
    ]
    return tuple(table for table in found if table.rows)


def headline(report: UnlearningReport) -> tuple[str, ...]:
    """A few sentences: what was done, what it is, what it is not."""
    result = report.result
    name = result.method
    edited = interval_text(result, lambda s: s.forget.answers.accuracy)
    kept = interval_text(result, lambda s: s.retain.answers.accuracy)
    kl = interval_text(result, lambda s: s.text.kl, 4)
    found = [
        f"{name} forgot {report.n_forget} questions beside {report.n_retain} retained ones: forget "
        f"accuracy {report.before.forget.answers.accuracy:.3f} → {edited}, retained "
        f"{report.before.retain.answers.accuracy:.3f} → {kept}, KL per token {kl}.",
        f"The edit is {KINDS[result.kind]}.",
    ]
    # Seeds that say the same say it once.
    found += [f"Of the edit: {each}." for each in dict.fromkeys(result.said)]
    found += [f"Over-forgetting, which is itself detectable: {each}." for each in over(report)]
    if report.gold is None:
        found.append("No gold model was given: whether it forgot too much is judged by less.")
    return tuple(found)


def over(report: UnlearningReport) -> tuple[str, ...]:
    """The signs of over-forgetting."""
    return report.over_forgetting


def forget_table(report: UnlearningReport) -> ReportTable:
    """What is left of the forget set, in the edit's wordings and in others."""
    rows = []
    for label, get in (
        ("edit's wordings", lambda s: s.forget),
        ("unseen wordings", lambda s: s.forget_unseen),
    ):
        numbers = _asked_numbers(get, forget=True)
        rows += _rows(report, label, [*numbers, _quality(label)])
    header = ("forget set", "model", *_ASKED, "truth ratio", "forget quality")
    note = (
        "NLL in nats per token. Extraction strength is 1/n at least for an answer of n tokens: 1 "
        "for a single one, known or not. Truth ratio: mean of min(r, 1/r), 1 where right and wrong "
        "answers are equally likely. Forget quality: p of a KS test of the truth ratios against "
        "gold's."
    )
    return ReportTable("The forget set", header, tuple(rows), note)


def retain_table(report: UnlearningReport) -> ReportTable:
    """Questions that were to be kept: retained ones, near and far."""
    rows = []
    for label, get in (
        ("retained, edit's wordings", lambda s: s.retain),
        ("retained, unseen wordings", lambda s: s.retain_unseen),
        ("near", lambda s: _asked_of(s.near)),
        ("far", lambda s: _asked_of(s.far)),
    ):
        rows += _rows(report, label, _asked_numbers(get, forget=False))
    header = ("questions", "model", *_ASKED, "truth ratio")
    return ReportTable(
        "Questions to be kept", header, tuple(rows), "Truth ratio: mean of max(0, 1 - r)."
    )


def text_table(report: UnlearningReport) -> ReportTable:
    """Ordinary text: held out, near and far."""
    rows = []
    for label, get in (
        ("held out", lambda s: s.text),
        ("near", lambda s: s.near.text if s.near else None),
        ("far", lambda s: s.far.text if s.far else None),
    ):
        rows += _rows(report, label, [_text_number(get, "kl"), _text_number(get, "nll")], digits=4)
    note = "In nats per token. KL is KL(unedited || model)."
    return ReportTable("Text to be kept", ("text", "model", "KL", "NLL"), tuple(rows), note)


def relearning_table(report: UnlearningReport) -> ReportTable:
    """Steps until the forgotten is known again."""
    rows = []
    for lesson, label in LESSONS.items():
        for name, scores in _models(report):
            if any(c.lesson == lesson for s in scores for c in s.relearning):
                steps = ", ".join(steps_text(report, s, lesson) for s in scores)
                curves = [c for s in scores for c in s.relearning if c.lesson == lesson]
                first = f"{sum(c.accuracy[0] for c in curves) / len(curves):.3f}"
                last = f"{sum(c.accuracy[-1] for c in curves) / len(curves):.3f}"
                rows.append((label, name, steps, first, last))
    header = ("taught", "model", "steps, per seed", "accuracy before", "accuracy after")
    note = (
        "Steps until 0.9 of the accuracy before the edit. What comes back on the other half, or "
        "from unrelated text, was not taught: it is a leak."
    )
    return ReportTable("Relearning", header, tuple(rows), note)


def rounding_table(report: UnlearningReport) -> ReportTable:
    """The weights rounded."""
    rows = []
    for name, scores in _models(report):
        for place, rounded in enumerate(scores[0].rounding):
            each = [s.rounding[place] for s in scores]
            rows.append(
                (
                    f"{rounded.bits} bits",
                    name,
                    _mean([r.forget_accuracy for r in each]),
                    _mean([r.retain_accuracy for r in each]),
                    _mean([r.kl for r in each], 4),
                )
            )
    header = ("weights", "model", "forget accuracy", "retained accuracy", "KL")
    note = "Round to nearest, symmetric, one scale per output channel, matrices of the blocks."
    return ReportTable("Rounded weights", header, tuple(rows), note)


def depth_table(report: UnlearningReport) -> ReportTable:
    """Probes and logit lens behind every layer."""
    rows = []
    for name, scores in _models(report):
        depths = [s.depth for s in scores if s.depth is not None]
        if not depths:
            continue
        for layer in range(len(depths[0].lens_rank)):
            probes = []
            for degree in (1, 2):
                found = [
                    p for d in depths for p in d.probes if (p.layer, p.degree) == (layer, degree)
                ]
                probes += [_mean([p.accuracy for p in found]), _mean([p.control for p in found])]
            rank = _mean([d.lens_rank[layer] for d in depths], 1)
            rows.append((f"layer {layer}", name, *probes, rank))
    header = ("behind", "model", "linear", "shuffled", "quadratic", "shuffled", "lens rank")
    note = (
        "Probes are fitted on retained questions and find the forgotten answers' first tokens; "
        "lens rank: tokens that the logit lens puts above the answer, median."
    )
    return ReportTable("What the layers still say", header, tuple(rows), note)


def dose_table(report: UnlearningReport) -> ReportTable:
    """The edit scaled."""
    rows = tuple(
        (
            f"{p.scale:g}",
            f"{p.forget_accuracy:.3f}",
            f"{p.forget_nll:.2f}",
            f"{p.retain_accuracy:.3f}",
            f"{p.kl:.4f}",
            "yes" if p.on_front else "",
        )
        for p in report.dose
    )
    header = ("scale", "forget accuracy", "forget NLL", "retained", "KL", "Pareto front")
    note = "The first seed's change of the weights, scaled; front: forget accuracy against cost, "
    return ReportTable("Dose", header, rows, note + "1 - retained accuracy + KL.")


def method_table(report: UnlearningReport) -> ReportTable:
    """The method beside its baselines, and gold."""
    rows = [("none (unedited)", *_method_cells(None, (report.before,), report), "", "")]
    if report.gold is not None:
        rows.append(("gold (retrained)", *_method_cells(None, (report.gold,), report), "", ""))
    for result in (report.result, *report.baselines):
        cells = _method_cells(result, result.scores, report)
        seconds = f"{sum(result.seconds) / len(result.seconds):.1f}"
        spent = f"{len(result.trials)} / {result.passes.forward} / {result.passes.backward}"
        rows.append((f"{result.method} ({result.kind})", *cells, seconds, spent))
    header = (
        "method",
        "forget",
        "unseen",
        "forget NLL",
        "retained",
        "KL",
        "forget quality",
        "relearn",
        "seconds",
        "trials / forward / backward",
    )
    note = (
        "Mean ± half the 95 % interval over the seeds. Seconds are one edit's; trials and passes "
        f"are the tuning's. Tuned on: {report.criterion}."
    )
    return ReportTable("Methods side by side", header, tuple(rows), note)


def trial_table(report: UnlearningReport) -> ReportTable:
    """Every setting that was tried."""
    rows = []
    for result in (report.result, *report.baselines):
        for trial in result.trials:
            settings = ", ".join(f"{name} {value}" for name, value in trial.settings)
            chosen = "yes" if trial.settings == result.settings else ""
            rows.append(
                (
                    result.method,
                    visible(settings) or "none",
                    _number(trial.forget_accuracy),
                    _number(trial.retain_accuracy),
                    _number(trial.kl, 4),
                    f"{trial.passes.forward}",
                    chosen or visible(trial.error),
                )
            )
    header = ("method", "settings", "forget", "retained", "KL", "passes", "chosen")
    return ReportTable("Tuning", header, tuple(rows))


def missing_table(report: UnlearningReport) -> ReportTable:
    """What could not be computed."""
    rows = tuple((each.what, visible(each.why)) for each in report.missing)
    return ReportTable("Not computed", ("what", "why"), rows)


def markdown(report: UnlearningReport) -> str:
    """The report as Markdown: sentences, then tables."""
    source = report.provenance
    lines = [f"# Unlearning report: {visible(source.model)}", ""]
    lines += [f"- {visible(each)}" for each in headline(report)]
    lines += [
        f"- {report.seeds} seeds, {report.n_texts} texts, {report.seconds:.0f} seconds in all; "
        f"{source}",
        "",
    ]
    for table in tables(report):
        lines += [f"## {table.title}", ""]
        lines += ["| " + " | ".join(_cell(c) for c in table.header) + " |"]
        lines += ["|" + "---|" * len(table.header)]
        lines += ["| " + " | ".join(_cell(c) for c in row) + " |" for row in table.rows]
        lines += ["", *([table.note, ""] if table.note else [])]
    return "\n".join(lines)


def interval_text(result: MethodResult, number: Number, digits: int = 3) -> str:
    """Mean ± half-width over the seeds; a dash where there is nothing."""
    interval = result.interval(number)
    if interval is None:
        return "-"
    if math.isnan(interval.half):
        return f"{interval.mean:.{digits}f}"
    return f"{interval.mean:.{digits}f} ± {interval.half:.{digits}f}"


def steps_text(report: UnlearningReport, scores: ModelScores, lesson: str) -> str:
    """The steps of a lesson; "> last" where they were not enough."""
    curve = next((c for c in scores.relearning if c.lesson == lesson), None)
    if curve is None:
        return "-"
    steps = report.relearn_steps(scores, lesson)
    return f"> {curve.steps[-1]}" if steps is None else str(steps)


_ASKED = ("accuracy", "NLL", "probability", "exact mem.", "extraction")


def _asked_numbers(get, forget: bool) -> list[Number]:
    def of(name: str) -> Number:
        def number(scores: ModelScores) -> float | None:
            asked = get(scores)
            return None if asked is None else getattr(asked.answers, name)

        return number

    def ratio(scores: ModelScores) -> float | None:
        return _truth_ratio(get(scores), forget)

    names = ("accuracy", "nll", "probability", "exact_memorisation", "extraction_strength")
    return [*(of(name) for name in names), ratio]


def _truth_ratio(asked: AskedScores | None, forget: bool) -> float | None:
    import torch

    if asked is None or not asked.truth_ratios:
        return None
    ratios = torch.tensor(asked.truth_ratios, dtype=torch.float64)
    return forget_truth_ratio(ratios) if forget else retain_truth_ratio(ratios)


def _quality(label: str) -> Number:
    if label == "edit's wordings":
        return lambda s: s.forget_quality
    return lambda s: s.forget_quality_unseen


def _asked_of(kept: KeptScores | None) -> AskedScores | None:
    return None if kept is None else kept.asked


def _text_number(get, name: str) -> Number:
    def number(scores: ModelScores) -> float | None:
        text = get(scores)
        return None if text is None else getattr(text, name)

    return number


def _models(report: UnlearningReport) -> list[tuple[str, tuple[ModelScores, ...]]]:
    found = [("unedited", (report.before,)), (report.result.method, report.result.scores)]
    return found if report.gold is None else [*found, ("gold", (report.gold,))]


def _rows(
    report: UnlearningReport, label: str, numbers: Sequence[Number], digits: int = 3
) -> list[tuple[str, ...]]:
    """One row per model, or none where no model has any of the numbers."""
    rows = []
    for name, scores in _models(report):
        if scores is report.result.scores:
            cells = [interval_text(report.result, number, digits) for number in numbers]
        else:
            cells = [_number(number(scores[0]), digits) for number in numbers]
        rows.append((label, name, *cells))
    return rows if any(cell != "-" for row in rows for cell in row[2:]) else []


def _method_cells(
    result: MethodResult | None, scores: Sequence[ModelScores], report: UnlearningReport
) -> tuple[str, ...]:
    numbers: list[tuple[Number, int]] = [
        (lambda s: s.forget.answers.accuracy, 3),
        (lambda s: s.forget_unseen.answers.accuracy if s.forget_unseen else None, 3),
        (lambda s: s.forget.answers.nll, 2),
        (lambda s: s.retain.answers.accuracy, 3),
        (lambda s: s.text.kl, 4),
        (lambda s: s.forget_quality, 3),
    ]
    if result is None:
        cells = [_number(number(scores[0]), digits) for number, digits in numbers]
    else:
        cells = [interval_text(result, number, digits) for number, digits in numbers]
    return (*cells, ", ".join(steps_text(report, s, "facts") for s in scores))


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _mean(values: Sequence[float], digits: int = 3) -> str:
    return f"{sum(values) / len(values):.{digits}f}" if values else "-"


def _cell(text: str) -> str:
    return visible(text).replace("|", "\\|")
