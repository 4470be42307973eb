"""How well answers are known, from the logits at their tokens.

A row is a question in one wording; its answer's n tokens are predicted teacher-forced. As in
open-unlearning (src/evals/metrics/memorization.py):

    NLL                  mean of -log p over the n tokens, in nats
    probability          exp(-NLL)
    exact memorisation   share of the n tokens that are the argmax
    extraction strength  1 - k/n, k the first token from which on all are the argmax

As coded there the search for k ends at n - 1, also where the last token is wrong: the least
extraction strength is 1/n, not 0. Accuracy is ours: the share of rows whose n tokens are all the
argmax. Everything is computed in float64.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_bilinear.unlearning.answer_rows import AnswerRows, site_margins


@dataclass(frozen=True, eq=False)
class RowScores:
    """One number per row."""

    known: Bool[Tensor, " row"]
    margin: Float[Tensor, " row"]
    """logit(label) minus the largest other logit, at the answer's weakest token."""
    nll: Float[Tensor, " row"]
    probability: Float[Tensor, " row"]
    exact_memorisation: Float[Tensor, " row"]
    extraction_strength: Float[Tensor, " row"]


@dataclass(frozen=True)
class AnswerScores:
    """Means over rows; `accuracy` and what follows `nll` lie between 0 and 1."""

    accuracy: float
    margin: float
    nll: float
    probability: float
    exact_memorisation: float
    extraction_strength: float
    n_rows: int


def score_rows(logits: Float[Tensor, "site d_vocab"], rows: AnswerRows) -> RowScores:
    """The scores of every row, O(sites * d_vocab).

    Args:
        logits: what `site_logits` gives for `rows`.
    """
    logits = logits.detach().double().cpu()
    row, n_rows = rows.site_row, rows.n_rows
    taken = logits.log_softmax(1).gather(1, rows.label[:, None])[:, 0]
    right = logits.argmax(1) == rows.label
    length = torch.bincount(row, minlength=n_rows).double()
    nll = _sums(-taken, row, n_rows) / length
    # One behind the last wrong token is where the known suffix begins.
    begins = torch.where(right, 0, rows.site_index + 1)
    k = torch.zeros(n_rows, dtype=begins.dtype).scatter_reduce_(0, row, begins, "amax")
    weakest = torch.full((n_rows,), torch.inf, dtype=torch.float64)
    weakest.scatter_reduce_(0, row, site_margins(logits, rows.label), "amin")
    share = _sums(right.double(), row, n_rows) / length
    return RowScores(
        known=share == 1,
        margin=weakest,
        nll=nll,
        probability=torch.exp(-nll),
        exact_memorisation=share,
        extraction_strength=1 - torch.minimum(k.double(), length - 1) / length,
    )


def mean_scores(scores: RowScores) -> AnswerScores:
    """The means over the rows."""
    return AnswerScores(
        accuracy=float(scores.known.double().mean()),
        margin=float(scores.margin.mean()),
        nll=float(scores.nll.mean()),
        probability=float(scores.probability.mean()),
        exact_memorisation=float(scores.exact_memorisation.mean()),
        extraction_strength=float(scores.extraction_strength.mean()),
        n_rows=len(scores.nll),
    )


def _sums(values: Tensor, row: Tensor, n_rows: int) -> Tensor:
    return torch.zeros(n_rows, dtype=values.dtype).index_add_(0, row, values)
