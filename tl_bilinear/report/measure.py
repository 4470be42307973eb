"""All numbers of a report, measured on one model: no HTML here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.ablation import AblationEffect, measure_ablation
from tl_bilinear.attribution import (
    Attribution,
    ComponentAttribution,
    Example,
    TokenReading,
    attribute_components,
    attribute_modes,
    mode_activations,
    reading_tokens,
    top_examples,
)
from tl_bilinear.decompositions import Eigendecomposition, Mode, eigendecompose
from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.self_check import NotBilinearError, SelfCheck, self_check
from tl_bilinear.hosts.target import Readout, make_readouts
from tl_bilinear.report.question import Question, make_question

N_LAYERS = 2
N_MODES = 3
N_TOKENS = 8
N_EXAMPLES = 4
N_PREDICTIONS = 8
DRAWS = 20

Progress = Callable[[str], None]
STEPS = (
    "checking the model against its weights",
    "running the prompt",
    "attributing the target to components",
    "decomposing the interaction matrices",
    "reading the vocabulary and the stories",
    "ablating the top mode and its random controls",
)


@dataclass(frozen=True)
class Prediction:
    token: str
    probability: float
    logit: float


@dataclass(frozen=True, eq=False)
class ModeReport:
    """One mode at the place where the target is read, and what it reads elsewhere."""

    mode: Mode
    index: int
    """Its place by |eigenvalue|, from 0."""
    activation: float
    contribution: float
    reading: TokenReading
    prompt_activations: tuple[float, ...]
    examples: tuple[Example, ...]

    @property
    def name(self) -> str:
        return f"L{self.mode.layer}.{self.index}"

    @property
    def scale(self) -> float:
        """The largest |activation| on prompt and excerpts, the first token left out."""
        values = [*self.prompt_activations[1:]]
        values += [value for example in self.examples for value in example.activations]
        return max((abs(value) for value in values), default=0.0)


@dataclass(frozen=True, eq=False)
class LayerReport:
    """One MLP's share of the target, taken apart."""

    layer: int
    eigen: Eigendecomposition
    """All eigenpairs of the layer's Q(u)."""
    modes: tuple[ModeReport, ...]
    """Those of largest |contribution|."""
    other_modes: float
    """The contributions of all other modes together."""
    trace: float
    linear: float
    constant: float
    share: float
    """The MLP's direct effect as `attribute_components` has it, from its output."""

    @property
    def total(self) -> float:
        shown = sum(mode.contribution for mode in self.modes)
        return shown + self.other_modes + self.trace + self.linear + self.constant


@dataclass(frozen=True, eq=False)
class Report:
    question: Question
    tokens: tuple[str, ...]
    """The prompt's."""
    site: int
    """The part of the target that the layers are read for: the largest |value|."""
    site_tokens: tuple[str, ...]
    """The prompt, and what of the target stands before the site's token."""
    check: SelfCheck
    predictions: tuple[Prediction, ...]
    components: ComponentAttribution
    rho: float
    """The final norm's denominator at the site."""
    layers: tuple[LayerReport, ...]
    """Strongest first."""
    ablation: AblationEffect
    texts_source: str
    n_texts: int
    shape: dict[str, int]
    dtype: str

    @property
    def top_mode(self) -> ModeReport:
        """The mode of largest |contribution| among those of the layers shown."""
        modes = [mode for layer in self.layers for mode in layer.modes]
        return max(modes, key=lambda mode: abs(mode.contribution))


def measure_report(
    model: Any,
    texts: Sequence[str],
    *,
    texts_source: str,
    prompt: str | None = None,
    target: str | None = None,
    against: str | None = None,
    layer: int | None = None,
    progress: Progress = lambda step: None,
) -> Report:
    """Measure everything that the page shows.

    Args:
        model: a HookedTransformer, a TransformerBridge or a host.
        texts: where excerpts come from and controls are matched.
        texts_source: who wrote them and under which licence they may be shown.
        prompt: see `make_question` for the defaults.
        target: a string.
        against: a string that is subtracted.
        layer: the only layer to take apart; the two of largest |share| where it is None.
        progress: called with each of `STEPS` as it begins.

    Raises:
        NotBilinearError: the self-check fails, or gates are not bilinear (frozen or not).
        ValueError: bad prompt, target or layer.
    """
    host = get_host(model)
    if layer is not None and not 0 <= layer < host.n_layers:
        raise ValueError(
            f"layer {layer} is out of range: this model has {host.n_layers} layers "
            f"(0-{host.n_layers - 1})"
        )
    if any(host.is_gated(i) for i in range(host.n_layers)):
        raise NotBilinearError(
            "a report shows modes of the weights alone, and this model's gates are not bilinear: "
            "tl_bilinear.attribute_modes reads it on a prompt when it is loaded with "
            "frozen_gates=True, tl_bilinear.bilinearize converts it"
        )
    question = make_question(host, prompt, target, against)
    readouts = make_readouts(host, question.target, [question.prompt])
    progress(STEPS[0])
    check = self_check(host)
    progress(STEPS[1])
    predictions = _predictions(host, question.prompt)
    progress(STEPS[2])
    components = attribute_components(host, question.prompt, question.target)
    site = int(components.target[0].abs().argmax())
    layers = [layer] if layer is not None else _strongest(components, site)
    progress(STEPS[3])
    modes = attribute_modes(host, question.prompt, question.target, layers=layers, k=None)
    progress(STEPS[4])
    site_text = _text_to_site(host, question, readouts[site])
    reports, site_tokens = _read_layers(host, site_text, components, modes, site, texts)
    progress(STEPS[5])
    top = max(
        (mode for report in reports for mode in report.modes),
        key=lambda mode: abs(mode.contribution),
    )
    return Report(
        question=question,
        tokens=tuple(host.str_tokens(host.to_tokens(question.prompt))),
        site=site,
        site_tokens=tuple(site_tokens),
        check=check,
        predictions=predictions,
        components=components,
        rho=float(modes.denominators[modes.layers.index(top.mode.layer), 0, site]),
        layers=reports,
        ablation=measure_ablation(
            host, question.prompt, question.target, top.mode, texts, draws=DRAWS
        ),
        texts_source=texts_source,
        n_texts=len(texts),
        shape=_shape(host),
        dtype=str(host.dtype).removeprefix("torch."),
    )


def _strongest(components: ComponentAttribution, site: int) -> list[int]:
    shares = components.mlps[:, 0, site].abs()
    return shares.argsort(descending=True, stable=True)[:N_LAYERS].tolist()


def _predictions(host: AbstractHost, prompt: str) -> tuple[Prediction, ...]:
    logits, _ = host.read(host.to_tokens(prompt)[None], ())
    last = logits[0, -1].double().cpu()
    best = last.topk(min(N_PREDICTIONS, len(last)))
    probabilities = last.softmax(-1)[best.indices].tolist()
    names = host.str_tokens(best.indices)
    rows = zip(names, probabilities, best.values.tolist(), strict=True)
    return tuple(Prediction(*row) for row in rows)


def _read_layers(
    host: AbstractHost,
    site_text: str,
    components: ComponentAttribution,
    attribution: Attribution,
    site: int,
    texts: Sequence[str],
) -> tuple[tuple[LayerReport, ...], list[str]]:
    """The layers' reports, and the tokens up to the place where the site is read."""
    end = int(attribution.positions[0, site]) + 1
    chosen = [_largest(attribution.contributions[row, 0, site]) for row in _rows(attribution)]
    modes = [
        attribution.mode(layer, index, site)
        for layer, indices in zip(attribution.layers, chosen, strict=True)
        for index in indices
    ]
    names, activations = mode_activations(host, site_text, modes)
    examples = top_examples(host, modes, texts, k=N_EXAMPLES)
    seen = frozenset(t for text in (site_text, *texts) for t in host.to_tokens(text).tolist())
    columns = iter(zip(modes, activations[:end].T.tolist(), examples, strict=True))
    reports = []
    for row, (layer, indices) in enumerate(zip(attribution.layers, chosen, strict=True)):
        shown = tuple(
            _mode_report(host, attribution, row, site, index, seen, *next(columns))
            for index in indices
        )
        everything = attribution.contributions[row, 0, site].sum()
        everything = everything + attribution.remainder[row, 0, site]
        reports.append(
            LayerReport(
                layer=layer,
                eigen=eigendecompose(
                    host.mlp_tensor(layer).to(torch.float64), attribution.directions[site]
                ),
                modes=shown,
                other_modes=float(everything) - sum(mode.contribution for mode in shown),
                trace=float(attribution.trace[row, 0, site]),
                linear=float(attribution.linear[row, 0, site]),
                constant=float(attribution.constant[row, 0, site]),
                share=float(components.mlps[layer, 0, site]),
            )
        )
    return tuple(reports), names[:end]


def _rows(attribution: Attribution) -> range:
    return range(len(attribution.layers))


def _largest(contributions: Float[Tensor, " mode"]) -> list[int]:
    return contributions.abs().argsort(descending=True, stable=True)[:N_MODES].tolist()


def _mode_report(
    host: AbstractHost,
    attribution: Attribution,
    row: int,
    site: int,
    index: int,
    seen: frozenset[int],
    mode: Mode,
    prompt_activations: list[float],
    examples: tuple[Example, ...],
) -> ModeReport:
    return ModeReport(
        mode=mode,
        index=index,
        activation=float(attribution.activations[row, 0, site, index]),
        contribution=float(attribution.contributions[row, 0, site, index]),
        reading=reading_tokens(host, mode, N_TOKENS, among=seen),
        prompt_activations=tuple(prompt_activations),
        examples=examples,
    )


def _text_to_site(host: AbstractHost, question: Question, readout: Readout) -> str:
    """A text that begins with all the tokens that the model has read at the site."""
    if not readout.prefix:
        return question.prompt
    before = host.to_tokens(question.prompt).tolist()
    halves = question.target if isinstance(question.target, tuple) else (question.target,)
    texts = [question.prompt + half for half in halves if isinstance(half, str)]
    wanted = [*before, *readout.prefix]
    return next(text for text in texts if host.to_tokens(text).tolist()[: len(wanted)] == wanted)


def _shape(host: AbstractHost) -> dict[str, int]:
    return {
        "layers": host.n_layers,
        "d_model": host.d_model,
        "d_mlp": host.d_mlp,
        "heads": host.n_heads,
        "vocabulary": host.d_vocab,
        "context": host.n_ctx,
    }
