"""How deep an edit goes: what every layer's stream still says about the forgotten answers.

Two readings of the residual stream behind each layer, at the last token of the prompt: probes
(ridge regressions, linear and quadratic, fitted on the *retained* questions, measured on the
forgotten ones, so that the probe cannot learn the forgotten facts themselves), and the logit lens
(the final norm and the unembedding applied to the stream): at which rank the answer stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.reading import unembed
from tl_bilinear.unlearning.answer_rows import AnswerRows, Wordings, answer_rows
from tl_bilinear.unlearning.probes import Degree, ridge_probe
from tl_bilinear.unlearning.question import Question

SHARED = 0.5
"""Of the forgotten answers that must be answers of retained questions too."""


@dataclass(frozen=True)
class LayerProbe:
    """One layer's probe: accuracies on the forgotten answers' first tokens."""

    layer: int
    """The stream behind it."""
    degree: Degree
    accuracy: float
    control: float
    """The same with shuffled labels, mean of five."""
    majority: float


@dataclass(frozen=True)
class Depth:
    """Readings of the stream behind every layer."""

    probes: tuple[LayerProbe, ...]
    """Empty where retained questions do not have the forgotten answers."""
    lens_rank: tuple[float, ...]
    """Per layer, median over forget rows of the number of tokens above the answer's first."""

    def accuracy(self, degree: Degree) -> tuple[float, ...]:
        """Per layer, from the first block on."""
        return tuple(p.accuracy for p in self.probes if p.degree == degree)


def measure_depth(
    model: Any,
    forget: Sequence[Question],
    retain: Sequence[Question],
    wordings: Wordings = "edit",
    seed: int = 0,
) -> Depth:
    """Probes and logit lens behind every layer, in float64.

    Cost: a forward pass of all rows, O(retain rows^3) per layer for the quadratic probe.
    """
    host = get_host(model)
    gone, kept = (answer_rows(host, set_, wordings=wordings) for set_ in (forget, retain))
    streams, others = _streams(host, gone), _streams(host, kept)
    label, known = _first_labels(gone), _first_labels(kept)
    rank = tuple(float(answer_ranks(host, stream, label).median()) for stream in streams)
    if not shares_answers(label, known):
        return Depth((), rank)
    _, classes = torch.cat([known, label]).unique(return_inverse=True)
    held_out = torch.arange(len(classes)) >= len(known)
    probes = []
    for layer, (fitted, measured) in enumerate(zip(others, streams, strict=True)):
        for degree in (1, 2):
            probe = ridge_probe(
                torch.cat([fitted, measured]), classes, held_out, degree=degree, seed=seed
            )
            probes.append(LayerProbe(layer, degree, probe.accuracy, probe.control, probe.majority))
    return Depth(tuple(probes), rank)


def shares_answers(label: Tensor, known: Tensor) -> bool:
    """Whether enough forgotten answers are also answers of retained questions."""
    return float(torch.isin(label, known).double().mean()) >= SHARED and len(known) > 2


def answer_ranks(host: AbstractHost, stream: Float[Tensor, "row d_model"], label: Tensor) -> Tensor:
    """How many tokens the logit lens puts above the label, per row."""
    logits = unembed(host, host.final_norm().normalize(stream))
    return (logits > logits.gather(1, label[:, None].to(logits.device))).sum(1).double()


def _first_labels(rows: AnswerRows) -> Tensor:
    return rows.label[rows.site_index == 0]


def _streams(host: AbstractHost, rows: AnswerRows) -> list[Float[Tensor, "row d_model"]]:
    """The stream behind every layer where the answer's first token is predicted."""
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(host.n_layers)]
    first = rows.site_pos[rows.site_index == 0]
    found: list[list[Tensor]] = [[] for _ in names]
    for part in torch.arange(rows.n_rows).split(64):
        _, values = host.read(rows.select(part).tokens, names)
        for place, name in zip(found, names, strict=True):
            place.append(values[name][torch.arange(len(part)), first[part]].double().cpu())
    return [torch.cat(place) for place in found]
