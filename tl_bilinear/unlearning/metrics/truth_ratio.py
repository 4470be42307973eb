"""Whether wrong answers are as likely as the right one.

As in open-unlearning (`truth_ratio` in src/evals/metrics/memorization.py): with the mean NLL per
token of an answer and its mean over the wrong answers of one question (so that the wrong answers'
probability is their geometric mean),

    r = exp(-NLL(wrong)) / (exp(-NLL(right)) + 1e-10)

Summarised over a forget set as the mean of min(r, 1/(r + 1e-10)), which is 1 where wrong and right
are equally likely; over a retain set as the mean of max(0, 1 - r).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.unlearning.answer_rows import AnswerRows

EPSILON = 1e-10


def truth_ratios(
    right_nll: Float[Tensor, " right"],
    right: AnswerRows,
    wrong_nll: Float[Tensor, " wrong"],
    wrong: AnswerRows,
) -> Float[Tensor, " asked"]:
    """r of every row of `right` whose question has wrong answers, in the order of the rows.

    Args:
        right_nll: NLL per row of `answer_rows(..., answers="answer")`.
        wrong_nll: NLL per row of `answer_rows(..., answers="wrong")` in the same wordings.
    """
    places = {pair: index for index, pair in enumerate(_pairs(right))}
    index = torch.tensor([places[pair] for pair in _pairs(wrong)])
    sums = torch.zeros_like(right_nll).index_add_(0, index, wrong_nll)
    counts = torch.bincount(index, minlength=len(right_nll))
    asked = counts > 0
    mean = sums[asked] / counts[asked]
    return torch.exp(-mean) / (torch.exp(-right_nll[asked]) + EPSILON)


def forget_truth_ratio(ratios: Float[Tensor, " asked"]) -> float:
    """Mean of min(r, 1/r): 1 where the right answer is as likely as the wrong ones."""
    return float(torch.minimum(ratios, 1 / (ratios + EPSILON)).mean())


def retain_truth_ratio(ratios: Float[Tensor, " asked"]) -> float:
    """Mean of max(0, 1 - r): 1 where the right answer is far likelier than the wrong ones."""
    return float((1 - ratios).clamp_min(0).mean())


def _pairs(rows: AnswerRows) -> list[tuple[int, int]]:
    return list(zip(rows.question.tolist(), rows.wording.tolist(), strict=True))
