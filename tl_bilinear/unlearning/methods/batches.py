"""What one step of a gradient method sees: forget rows, retain rows and windows of text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.optimisation import TokenWindows
from tl_bilinear.unlearning.answer_rows import AnswerRows, answer_rows
from tl_bilinear.unlearning.methods.method import Problem

ROWS = 32
"""Rows of each set in a step."""
WINDOWS, WINDOW = 4, 64


@dataclass(frozen=True, eq=False)
class Batch:
    forget: AnswerRows
    forget_index: Int[Tensor, " row"]
    """Which of all forget rows they are."""
    retain: AnswerRows
    text: Int[Tensor, "window pos"]


@dataclass(frozen=True, eq=False)
class ProblemBatches:
    """`batches(step)` is a function of (seed, step); all rows where there are few."""

    forget: AnswerRows
    retain: AnswerRows
    windows: TokenWindows
    seed: int

    @classmethod
    def of(cls, host: AbstractHost, problem: Problem) -> "ProblemBatches":
        return cls(
            forget=answer_rows(host, problem.forget),
            retain=answer_rows(host, problem.retain),
            windows=text_windows(host, problem.texts, problem.seed),
            seed=problem.seed,
        )

    def __call__(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        forget, retain = (_draw(rows, generator) for rows in (self.forget, self.retain))
        return Batch(
            forget=self.forget.select(forget),
            forget_index=forget,
            retain=self.retain.select(retain),
            text=self.windows(step),
        )

    def fingerprint(self) -> str:
        """The text's: nothing is resumed."""
        return self.windows.fingerprint()


def text_windows(host: AbstractHost, texts: Sequence[str], seed: int) -> TokenWindows:
    """Random windows of the texts, one behind the other, each with its first token (BOS).

    Raises:
        ValueError: texts of fewer than two tokens in all.
    """
    stream = torch.cat([host.to_tokens(text) for text in texts]) if texts else torch.zeros(0)
    window = min(WINDOW, host.n_ctx, len(stream))
    if window < 2:
        raise ValueError("`texts` hold no two tokens: give some ordinary text to keep")
    return TokenWindows(stream.long(), WINDOWS, window, seed)


def _draw(rows: AnswerRows, generator: torch.Generator) -> Tensor:
    if rows.n_rows <= ROWS:
        return torch.arange(rows.n_rows)
    return torch.randperm(rows.n_rows, generator=generator)[:ROWS].sort().values
