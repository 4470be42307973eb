"""The section on the strongest MLPs: spectrum, closing sum, and what the top modes read."""

from tl_bilinear.report.measure import LayerReport, ModeReport, Report
from tl_bilinear.views import Markup, Page, colored_tokens, spectrum_figure, table
from tl_bilinear.views.text import escape, scientific, signed, token_html


def section(page: Page, report: Report) -> str:
    """One part per layer, strongest first."""
    site = report.components.sites[report.site]
    place = ""
    if len(report.components.sites) > 1:
        value = signed(float(report.components.target[0, report.site]))
        place = (
            f"<p>The target has several tokens. This section takes the one whose value is largest, "
            f"{escape(site)} ({value} logits); each of the others has modes of its own.</p>"
        )
    intro = (
        f"{place}<p>Layers are ordered by the size of their MLP's direct effect. Modes come from "
        "the weights and the target alone; the prompt only says how strongly each is active. "
        f"ρ is {report.rho:.4f} here, so a mode contributes λ (v·x)² / {report.rho:.4f}. Shown are "
        "the modes of largest |contribution| on this prompt.</p>"
        "<p>For each: the tokens that read into it most, that is, the activation that a token's "
        "own embedding gives when it stands alone in the stream (without attention and without "
        "earlier MLPs); the prompt coloured by the activation at each token, blue above zero and "
        "orange below, the number under the pointer; and the stories' excerpts around the tokens "
        "where |activation| is largest, at most one per story, coloured on the same scale.</p>"
        f'<p class="note">Excerpts: {escape(report.texts_source)}.</p>'
    )
    return intro + "".join(_layer(page, report, layer) for layer in report.layers)


def _layer(page: Page, report: Report, layer: LayerReport) -> str:
    indices = [mode.index for mode in layer.modes]
    title = f"Layer {layer.layer}: spectrum of Q(u), quadratic part"
    figure = page.figure(
        spectrum_figure(layer.eigen, title=title, marked=indices),
        f"Eigenvalues of the interaction matrix of layer {layer.layer}, by size.",
    )
    modes = "".join(_mode(page, report, mode) for mode in layer.modes)
    return (
        f"<h3>Layer {layer.layer}: the MLP adds {signed(layer.share)} logits</h3>"
        f"{figure}{_degenerate(layer)}{_closing(layer)}{modes}"
    )


def _degenerate(layer: LayerReport) -> str:
    shown = {mode.index for mode in layer.modes}
    groups = [group for group in layer.eigen.degenerate_groups() if shown & set(group)]
    if not groups:
        return ""
    text = "; ".join(", ".join(map(str, group)) for group in groups)
    return (
        f'<p class="note">Modes {text} have equal eigenvalues: only the space that they span '
        "means something, not each vector.</p>"
    )


def _closing(layer: LayerReport) -> str:
    rows = [
        [
            mode.name,
            signed(mode.mode.eigenvalue),
            signed(mode.activation),
            signed(mode.contribution),
        ]
        for mode in layer.modes
    ]
    others = len(layer.eigen.eigenvalues) - len(layer.modes)
    rows.append([f"the other {others} modes together", "", "", signed(layer.other_modes)])
    if layer.eigen.gauge != "none":
        rows.append(["what the gauge took out", "", "", signed(layer.trace)])
    rows += [
        ["linear part (biases times x)", "", "", signed(layer.linear)],
        ["constant part (biases)", "", "", signed(layer.constant)],
        ["sum of the above", "", "", signed(layer.total)],
        ["the MLP's direct effect, from its output", "", "", signed(layer.share)],
        ["discrepancy (rounding)", "", "", scientific(layer.share - layer.total)],
    ]
    return table(
        ["part", "eigenvalue λ", "activation v·x", "contribution (logits)"],
        rows,
        total_rows=3,
        caption="The MLP's direct effect, taken apart where the target is read.",
    )


def _mode(page: Page, report: Report, mode: ModeReport) -> str:
    scale = mode.scale
    prompt = colored_tokens(page, report.site_tokens, mode.prompt_activations, scale)
    examples = "".join(
        f'<div class="example"><span class="note">story {example.text}, '
        f"{signed(example.activations[example.peak], 2)} at "
        f"{token_html(example.tokens[example.peak])}</span>"
        + colored_tokens(page, example.tokens, example.activations, scale)
        + "</div>"
        for example in mode.examples
    )
    return (
        f'<div class="mode"><h4>{mode.name}: {signed(mode.contribution)} logits '
        f"(λ = {signed(mode.mode.eigenvalue)}, activation {signed(mode.activation)})</h4>"
        '<p class="note">Tokens that read into it most, with either sign, of those that occur in '
        "the prompt or in the stories:</p>"
        f'<div class="pair">{_tokens("With activation +", mode.reading.positive)}'
        f"{_tokens('With activation −', mode.reading.negative)}</div>"
        f'<p class="note">The prompt, full colour at ±{scale:.2f} (the first token is left out of '
        f"the scale):</p>{prompt}"
        f'<p class="note">Story excerpts with the largest |activation|:</p>{examples}</div>'
    )


def _tokens(caption: str, pairs: tuple[tuple[str, float], ...]) -> str:
    rows = [[Markup(token_html(token)), signed(value, 2)] for token, value in pairs]
    return table(["token", "v·x"], rows, caption=caption)
