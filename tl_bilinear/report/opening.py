"""The first sections of a report: what was found, the model, the prompt."""

from tl_bilinear.report.measure import Report
from tl_bilinear.views import Markup, table
from tl_bilinear.views.text import escape, percent, scientific, signed, token_html, visible


def head(report: Report) -> str:
    """Title, question, and the findings in a few sentences made of the numbers below."""
    question = report.question
    findings = [_prediction(report), _parts(report), _modes(report), _effect(report)]
    items = "".join(f"<li>{finding}</li>" for finding in findings)
    prompt = escape("".join(visible(character) for character in question.prompt))
    return (
        f"<h1>Report on {escape(report.components.provenance.model)}</h1>"
        f'<p class="lead">Prompt: “{prompt}”<br>Target: {escape(question.words)} '
        f"({escape(question.origin)}).</p>"
        f'<div class="summary"><strong>In short</strong><ul>{items}</ul></div>'
    )


def _prediction(report: Report) -> str:
    seen = [
        f"{token_html(token)} {percent(before)}"
        for token, before, _ in report.ablation.probabilities
    ]
    value = signed(float(report.components.target[0].sum()), 2)
    return f"The target is {value} logits; probabilities: {', '.join(seen)}."


def _parts(report: Report) -> str:
    parts = report.components
    named = {"the embedding": float(parts.embedding[0].sum())}
    for layer, mlp in enumerate(parts.mlps[:, 0].sum(1).tolist()):
        named[f"the MLP of layer {layer}"] = mlp
    for layer, heads in enumerate(parts.heads[:, 0].sum(1).tolist()):
        for index, value in enumerate(heads):
            named[f"head {index} of layer {layer}"] = value
    largest = sorted(named, key=lambda name: abs(named[name]), reverse=True)[:3]
    shown = ", ".join(f"{name} ({signed(named[name], 2)})" for name in largest)
    return (
        f"All parts of the model add up to {signed(float(parts.total[0].sum()), 2)}, "
        f"{scientific(abs(float(parts.discrepancy[0].sum())))} away from the model's own value. "
        f"The three largest: {shown}."
    )


def _modes(report: Report) -> str:
    top = report.top_mode
    return (
        f"The top mode, {top.name}, adds {signed(top.contribution, 2)} directly (eigenvalue "
        f"{signed(top.mode.eigenvalue, 3)}, activation {signed(top.activation, 2)})."
    )


def _effect(report: Report) -> str:
    effect = report.ablation
    changes = effect.control_changes
    return (
        f"Ablating it changes the target by {signed(effect.change, 2)}; {len(changes)} random "
        f"modes of the same size over the stories change it by {signed(min(changes), 2)} to "
        f"{signed(max(changes), 2)}, and {effect.controls_as_large} of them at least as far."
    )


def model(report: Report) -> str:
    """Shape, and the self-check per layer."""
    check, shape = report.check, report.shape
    facts = ", ".join(f"{name} {value:,}" for name, value in shape.items())
    rows = [
        [f"L{layer}", *(scientific(error) for error in errors)]
        for layer, errors in enumerate(
            zip(check.forward_errors, check.weight_errors, check.degree_errors, strict=True)
        )
    ]
    return (
        f"<p>{escape(report.components.provenance.model)}, read through TransformerLens' "
        f"{escape(check.host)} in {escape(report.dtype)}: {escape(facts)}. Fingerprint "
        f"{escape(report.components.provenance.fingerprint)}.</p>"
        "<p>Does the model compute what its weights say? Each MLP was asked three times: on random "
        "tokens, its output against the bilinear map of its weights with the norm folded in; on "
        "random inputs, its output against the weights alone; and its third difference "
        "f(2x) − 3f(x) + 3f(0) − f(−x), which is zero where it is a quadratic "
        f"function of its input. Passed: the largest error is {scientific(check.largest_error)}, "
        f"{scientific(check.tolerance)} is allowed.</p>"
        + table(
            ["layer", "on tokens", "on random inputs", "third difference"],
            rows,
            caption="Largest |difference| relative to the largest |value|, per MLP.",
        )
    )


def prompt(report: Report) -> str:
    """The prompt's tokens, what comes next, and the target's value at each place."""
    tokens = " ".join(token_html(token) for token in report.tokens)
    rows = [
        [str(rank), Markup(token_html(p.token)), percent(p.probability), signed(p.logit, 3)]
        for rank, p in enumerate(report.predictions, 1)
    ]
    parts = report.components
    values = [
        [site, signed(value)]
        for site, value in zip(parts.sites, parts.target[0].tolist(), strict=True)
    ]
    total = ["the target", signed(float(parts.target[0].sum()))]
    several = len(values) > 1
    return (
        f'<p class="prompt">{tokens}</p>'
        + table(
            ["rank", "next token", "probability", "logit"],
            rows,
            text_columns=2,
            caption="The model's most likely next tokens.",
        )
        + table(
            ["target", "logits"],
            [*values, total] if several else values,
            total_rows=int(several),
            caption="The target's value"
            + (", token by token: the sum over the tokens." if several else "."),
        )
    )
