"""What an edit does to ordinary text: KL per token and next-token loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.corpus import token_batches


@dataclass(frozen=True)
class TextScores:
    """Over the tokens of some texts, in nats."""

    kl: float
    """Mean over all positions of KL(original || edited) of the next token's distribution."""
    nll: float
    """Mean of -log p of each next token."""
    n_tokens: int
    """Positions that `kl` is a mean over."""


def score_texts(model: Any, original: Any, texts: Sequence[str]) -> TextScores:
    """Both over every position of every text, each cut at the context; sums in float64.

    Cost: one forward pass of the texts through either model.

    Raises:
        ValueError: texts without two tokens.
    """
    host, reference = get_host(model), get_host(original)
    divergence, loss, positions, predicted = 0.0, 0.0, 0, 0
    for _, rows in token_batches(host, texts):
        for row, ours, theirs in zip(rows, _logs(host, rows), _logs(reference, rows), strict=True):
            n = len(row)
            p, q = theirs[:n], ours[:n]
            divergence += float((p.exp() * (p - q)).sum())
            loss -= float(q[:-1].gather(1, row[1:, None].to(q.device)).sum())
            positions, predicted = positions + n, predicted + n - 1
    if not predicted:
        raise ValueError("the texts hold no two tokens: give longer ones")
    # A rounding error below zero is no divergence.
    return TextScores(max(divergence / positions, 0.0), loss / predicted, positions)


def _logs(host: AbstractHost, rows: Sequence[Tensor]) -> Tensor:
    tokens = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    logits, _ = host.read(tokens, [])
    return logits.double().log_softmax(-1)
