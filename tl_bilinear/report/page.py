"""The sections of a report, put together into one page."""

from importlib.metadata import version

from tl_bilinear.report import layers, opening
from tl_bilinear.report.measure import Report
from tl_bilinear.report.numbers import report_numbers
from tl_bilinear.report.words import WORDS
from tl_bilinear.views import (
    Contributions,
    Page,
    ablation_figure,
    contribution_figure,
    contribution_table,
    table,
)
from tl_bilinear.views.text import escape, percent, signed


def report_page(report: Report) -> str:
    """The whole page as HTML, in one self-contained file."""
    page = Page(f"{report.components.provenance.model}: {report.question.words}")
    page.add(opening.head(report), _words())
    page.add("<h2>1. The model and its self-check</h2>", opening.model(report))
    page.add("<h2>2. The prompt and the model's predictions</h2>", opening.prompt(report))
    page.add("<h2>3. What each head and each layer's MLP adds</h2>", _components(page, report))
    page.add("<h2>4. The strongest MLPs, mode by mode</h2>", layers.section(page, report))
    page.add("<h2>5. What ablating the top mode does</h2>", _ablation(page, report))
    page.add("<h2>6. Where all this comes from</h2>", _origin(report))
    page.data("report-data", report_numbers(report))
    return page.html()


def _words() -> str:
    items = "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in WORDS)
    return f'<h2>Words used on this page</h2><dl class="words">{items}</dl>'


def _components(page: Page, report: Report) -> str:
    parts = report.components
    contributions = Contributions(
        embedding=float(parts.embedding[0].sum()),
        heads=parts.heads[:, 0].sum(1).cpu(),
        attention_bias=parts.attention_bias[:, 0].sum(1).cpu(),
        mlps=parts.mlps[:, 0].sum(1).cpu(),
        bias=float(parts.bias.sum()),
        target=float(parts.target[0].sum()),
    )
    several = ""
    if len(parts.sites) > 1:
        several = " The target has several tokens; each number is the sum over them."
    alt = "Bar chart: direct effect of the embedding and of each layer's heads and MLP."
    return (
        "<p>Direct effects on the target, with the final norm's ρ frozen and nothing else "
        f"left out.{several} L3 is layer 3; “heads” are all attention heads of a layer, “output "
        "biases” those of unembedding and final norm.</p>"
        + page.figure(contribution_figure(contributions), alt)
        + contribution_table(contributions)
    )


def _ablation(page: Page, report: Report) -> str:
    effect, name = report.ablation, report.top_mode.name
    controls = sorted(effect.control_changes)
    draws = len(controls)
    middle = (controls[(draws - 1) // 2] + controls[draws // 2]) / 2
    alt = f"Strip plot: change of the target for {name} and for {draws} matched random modes."
    figure = page.figure(
        ablation_figure(
            effect.change, effect.control_changes, name=f"mode {name}", direct=effect.direct
        ),
        alt,
    )
    rows = [
        ["target before", signed(effect.before)],
        [f"target with {name} ablated", signed(effect.after)],
        ["change, measured", signed(effect.change)],
        ["change foreseen from the direct effect", signed(effect.direct)],
        [f"random modes: smallest of {draws} changes", signed(controls[0])],
        ["random modes: median change", signed(middle)],
        [f"random modes: largest of {draws} changes", signed(controls[-1])],
        [
            "random modes that move the target at least as far, either way",
            f"{effect.controls_as_large} of {draws}",
        ],
    ]
    probabilities = [
        [repr(token), percent(before), percent(after)]
        for token, before, after in effect.probabilities
    ]
    return (
        f"<p>{name} is the mode of largest |contribution| in section 4. It is ablated in its layer "
        "at every token of the prompt and the rest of the model runs again with nothing frozen. "
        "The change foreseen is minus the direct effect of what is taken out where the target is "
        "read: it leaves out what the mode does at earlier tokens, through later layers, and to "
        "the norms, so the two need not agree.</p>"
        f"<p>Beside it, {draws} matched random modes (seed {effect.seed}): same layer, direction "
        f"and sign, random eigenvector, and the same root-mean-square λ (v·x)² of {effect.rms:.3g} "
        f"over the {effect.tokens:,} tokens of the stories. If the mode mattered only by its "
        "size, they would do as much.</p>"
        + figure
        + table(["", "logits"], rows, caption="The target before and after, in logits.")
        + table(
            ["token of the target", "before", f"{name} ablated"],
            probabilities,
            caption="Probability of each token of the target where it is read.",
        )
    )


def _origin(report: Report) -> str:
    source = report.components.provenance
    rows = [
        ["model", f"{source.model}, fingerprint {source.fingerprint}"],
        ["read through", f"{source.host} of TransformerLens"],
        ["versions", f"{source.versions}, circuitsvis {version('circuitsvis')}"],
        ["frozen", ", ".join(source.frozen) + " (sections 3 and 4); nothing (section 5)"],
        ["gauge", report.layers[0].eigen.gauge],
        ["arithmetic", f"the model runs in {report.dtype}; sums and eigenpairs in float64"],
        ["excerpts", f"{report.texts_source} ({report.n_texts:,} texts)"],
    ]
    return (
        table(["", ""], rows, text_columns=2)
        + "<p>The fingerprint is a hash of the model's weights: the same weights give the same "
        "fingerprint in every host. All numbers of this page stand in it once more, "
        "unrounded, as JSON in the element with the id <code>report-data</code>.</p>"
        '<p class="note">Limits. Direct effects take the inputs of the components as they '
        "were: they do not say what an earlier layer did to these inputs. Modes belong to one "
        "target; another target has others. The excerpts show where a mode is most active, not "
        "all that it does. One prompt is one prompt.</p>"
    )
