"""How readily a model names the planted concept, and how well it tells stories about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from tl_bilinear.hosts import get_host
from tl_bilinear.unlearning.answer_rows import AnswerRows, answer_rows, site_logits
from tl_bilinear.unlearning.metrics import score_texts
from tl_bilinear.unlearning.question import Question


@dataclass(frozen=True)
class Named:
    """At every place of some texts where the word stands."""

    probability: float
    """Mean probability of the whole word, the product over its tokens."""
    rank: float
    """Median over places of the word's worst token: how many tokens are more likely there."""
    places: int


@dataclass(frozen=True)
class ConceptScores:
    """Held-out stories about the concept."""

    first: Named
    """Where a passage names it first: nothing there can be copied."""
    later: Named
    """Where the passage has named it before: to copy is enough."""
    story_nll: float
    """Nats per token of the whole passages."""


@torch.no_grad()
def score_concept(
    model: Any,
    original: Any,
    first: Sequence[str],
    later: Sequence[str],
    stories: Sequence[str],
    word: str,
) -> ConceptScores:
    """Three passes over the passages.

    Raises:
        ValueError: no place where the word stands, or no story.
    """
    return ConceptScores(
        first=score_naming(model, first, word),
        later=score_naming(model, later, word),
        story_nll=score_texts(model, original, stories).nll,
    )


@torch.no_grad()
def score_naming(model: Any, beginnings: Sequence[str], word: str) -> Named:
    """The probability and the rank of the word behind each beginning."""
    rows = answer_rows(model, [Question(prompt=text, answer=f" {word}") for text in beginnings])
    logits = site_logits(get_host(model), rows).double().cpu()
    return _named(logits, rows)


def _named(logits: torch.Tensor, rows: AnswerRows) -> Named:
    label = rows.label[:, None]
    log_p = logits.log_softmax(1).gather(1, label)[:, 0]
    rank = (logits > logits.gather(1, label)).sum(1)
    whole = torch.zeros(rows.n_rows, dtype=torch.double).index_add_(0, rows.site_row, log_p)
    worst = torch.zeros(rows.n_rows, dtype=rank.dtype)
    worst.scatter_reduce_(0, rows.site_row, rank, reduce="amax")
    return Named(float(whole.exp().mean()), float(median(worst.tolist())), rows.n_rows)
