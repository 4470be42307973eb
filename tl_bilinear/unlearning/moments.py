"""Second moments of what layers hold on the prompts of questions."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.unlearning.answer_rows import AnswerRows, answer_rows
from tl_bilinear.unlearning.layer_basis import LayerBasis
from tl_bilinear.unlearning.question import Question
from tl_bilinear.unlearning.site_gradients import log_odds_gradients
from tl_bilinear.unlearning.text_metric import LayerMoments


def answer_moments(
    host: AbstractHost, questions: Sequence[Question], bases: Sequence[LayerBasis]
) -> dict[int, LayerMoments]:
    """E[phi phi^T] and E[W g g^T W^T] where answers depend on a layer's output.

    g is the gradient of an answer's log-odds by the output; a position counts by how much the
    answers hang on it, so that what the prompts merely contain does not.
    """
    rows = answer_rows(host, questions)
    return _moments(host, rows, bases, [slice(None)])[0]


def halved_moments(
    host: AbstractHost, questions: Sequence[Question], bases: Sequence[LayerBasis]
) -> list[dict[int, LayerMoments]]:
    """`answer_moments`, and behind them those of either half of the wordings where it has two.

    A question of several wordings has every other one in each half; those of one wording go to
    either half by turns.
    """
    rows = answer_rows(host, questions)
    counts = rows.question.bincount()[rows.question]
    second = torch.where(counts > 1, rows.wording, rows.question)[rows.site_row] % 2 == 1
    halves = [~second, second] if 0 < int(second.sum()) < rows.n_sites else []
    return _moments(host, rows, bases, [slice(None), *(half.to(host.device) for half in halves)])


def _moments(
    host: AbstractHost,
    rows: AnswerRows,
    bases: Sequence[LayerBasis],
    parts: Sequence[Bool[Tensor, " site"] | slice],
) -> list[dict[int, LayerMoments]]:
    """Of each part of the sites."""
    zero = [(basis, torch.zeros(basis.shape)) for basis in bases]
    _, found = log_odds_gradients(host, rows, zero)
    moments: list[dict[int, LayerMoments]] = [{} for _ in parts]
    for basis in bases:
        seen = found[basis.layer]
        weights = seen.gradients.double().square().sum(-1)
        phi = basis.features(seen.values).double()[seen.site_row]
        psi = basis.readings(seen.gradients).double()
        for part, its in zip(parts, moments, strict=True):
            weight, read = weights[part], psi[part]
            total = weight.sum().clamp_min(torch.finfo(torch.float64).tiny)
            features, flat = _weighted(phi[part], weight) / total, read.flatten(0, 1)
            its[basis.layer] = LayerMoments(features, flat.mT @ flat / len(read))
    return moments


def _weighted(phi: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("spf,sp,spg->fg", phi, weight, phi)
