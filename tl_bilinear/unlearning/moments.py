"""Second moments of what layers hold on the prompts of questions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.unlearning.answer_rows import answer_rows
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
    zero = [(basis, torch.zeros(basis.shape)) for basis in bases]
    _, found = log_odds_gradients(host, rows, zero)
    moments = {}
    for basis in bases:
        seen = found[basis.layer]
        weight = seen.gradients.double().square().sum(-1)
        phi = basis.features(seen.values).double()[seen.site_row]
        psi = basis.readings(seen.gradients).double()
        total = weight.sum().clamp_min(torch.finfo(torch.float64).tiny)
        moments[basis.layer] = LayerMoments(
            _weighted(phi, weight) / total, psi.flatten(0, 1).mT @ psi.flatten(0, 1) / len(psi)
        )
    return moments


def _weighted(phi: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("spf,sp,spg->fg", phi, weight, phi)
