"""Questions as token rows, each answer behind its prompt, and what a model says at the answers.

A *site* is one token of one answer: its label is predicted at the position before it, the earlier
tokens of the answer being given. An answer of n tokens has n sites.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.logits_at import logits_at
from tl_bilinear.unlearning.question import Question, require_questions

Wordings = Literal["edit", "unseen", "all"]
Answers = Literal["answer", "wrong"]
# Of so many rows at a time the activations are held, and at their sites the logits.
BATCH = 64


@dataclass(frozen=True, eq=False)
class AnswerRows:
    """Prompts with their answers, padded on the right, which a causal model does not see."""

    tokens: Int[Tensor, "row pos"]
    lengths: Int[Tensor, " row"]
    question: Int[Tensor, " row"]
    """Index into the questions; a question's rows are neighbours."""
    wording: Int[Tensor, " row"]
    """Index into the question's `(*wordings, *unseen)`."""
    wrong: Int[Tensor, " row"]
    """Index into the question's `wrong`; -1 where the row holds its answer."""
    site_row: Int[Tensor, " site"]
    site_pos: Int[Tensor, " site"]
    label: Int[Tensor, " site"]
    """The token that is to be predicted at (row, pos)."""

    @property
    def n_rows(self) -> int:
        return len(self.lengths)

    @property
    def n_sites(self) -> int:
        return len(self.label)

    @property
    def site_index(self) -> Int[Tensor, " site"]:
        """Which token of its answer a site is, from 0."""
        first = torch.ones(self.n_sites, dtype=torch.bool)
        first[1:] = self.site_row[1:] != self.site_row[:-1]
        places = torch.arange(self.n_sites)
        return places - torch.where(first, places, 0).cummax(0).values

    def by_length(self, batch: int) -> list[Int[Tensor, " kept"]]:
        """The rows in batches of neighbours in length, so that little of them is padding."""
        return list(self.lengths.argsort(stable=True).split(batch))

    def by_sites(self, batch: int) -> list[Int[Tensor, " kept"]]:
        """The rows in batches of as many sites each, and of neighbours in length."""
        sites = torch.bincount(self.site_row, minlength=self.n_rows)
        by_length = self.lengths.argsort(stable=True)
        alike = [by_length[sites[by_length] == count] for count in sites.unique()]
        return [part for rows in alike for part in rows.split(batch)]

    def with_sites(self, kept: Bool[Tensor, " site"]) -> Bool[Tensor, " row"]:
        """The rows that have one of these sites."""
        rows = torch.zeros(self.n_rows, dtype=torch.bool)
        rows[self.site_row[kept]] = True
        return rows

    def of_sites(self, kept: Bool[Tensor, " site"]) -> "AnswerRows":
        """Some of the sites alone, and the rows that have one."""
        rows = self.with_sites(kept)
        found = self.select(rows)
        inside = kept[self.sites_of([rows.nonzero()[:, 0]])]
        return replace(
            found,
            site_row=found.site_row[inside],
            site_pos=found.site_pos[inside],
            label=found.label[inside],
        )

    def sites_of(self, parts: Sequence[Tensor]) -> Int[Tensor, " site"]:
        """Each site's place here, in the order in which batches of rows have them."""
        starts = torch.zeros(self.n_rows + 1, dtype=torch.long)
        starts[1:] = torch.bincount(self.site_row, minlength=self.n_rows).cumsum(0)
        order = torch.cat(list(parts)).tolist()
        return torch.cat([torch.arange(int(starts[row]), int(starts[row + 1])) for row in order])

    def joined(self, other: "AnswerRows") -> "AnswerRows":
        """These rows and behind them the other ones, of other questions."""
        width = max(self.tokens.shape[1], other.tokens.shape[1])
        wide = [
            functional.pad(each.tokens, (0, width - each.tokens.shape[1])) for each in (self, other)
        ]
        questions = int(self.question.max()) + 1 if self.n_rows else 0

        def both(name: str, shift: int = 0) -> Tensor:
            return torch.cat([getattr(self, name), getattr(other, name) + shift])

        return AnswerRows(
            tokens=torch.cat(wide),
            lengths=both("lengths"),
            question=both("question", questions),
            wording=both("wording"),
            wrong=both("wrong"),
            site_row=both("site_row", self.n_rows),
            site_pos=both("site_pos"),
            label=both("label"),
        )

    def select(self, rows: Int[Tensor, " kept"] | Bool[Tensor, " row"]) -> "AnswerRows":
        """Some of the rows, in the order given, cut to the longest of them."""
        kept = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        lengths = self.lengths[kept]
        sites = [(self.site_row == row).nonzero()[:, 0] for row in kept.tolist()]
        order = torch.cat(sites) if sites else kept[:0]
        counts = torch.tensor([len(places) for places in sites], dtype=torch.long)
        return AnswerRows(
            tokens=self.tokens[kept, : int(lengths.max()) if len(kept) else 0],
            lengths=lengths,
            question=self.question[kept],
            wording=self.wording[kept],
            wrong=self.wrong[kept],
            site_row=torch.repeat_interleave(torch.arange(len(kept)), counts),
            site_pos=self.site_pos[order],
            label=self.label[order],
        )


def answer_rows(
    host: AbstractHost | Any,
    questions: Sequence[Question],
    *,
    wordings: Wordings = "edit",
    answers: Answers = "answer",
) -> AnswerRows:
    """One row per question and wording (and wrong answer).

    Args:
        host: a host or its model.
        wordings: "edit" (prompt and rewordings), "unseen", or "all".
        answers: "answer", or "wrong": one row for each of a question's wrong answers.

    Raises:
        ValueError: no question, or none that has such wordings or answers; a token that the model
            lacks; an answer that merges with the end of its prompt; a row beyond the context.
    """
    host = get_host(host)
    questions = require_questions("questions", questions)
    for name, value, kinds in (("wordings", wordings, Wordings), ("answers", answers, Answers)):
        if value not in get_args(kinds):
            raise ValueError(f"`{name}` must be one of {get_args(kinds)}, got {value!r}")
    found: list[tuple[int, int, int, Tensor, int]] = []
    for index, question in enumerate(questions):
        prompts = (*question.wordings, *question.unseen)
        seen = len(question.wordings)
        places = {
            "edit": range(seen),
            "unseen": range(seen, len(prompts)),
            "all": range(len(prompts)),
        }
        texts = [(-1, question.answer)] if answers == "answer" else list(enumerate(question.wrong))
        for place in places[wordings]:
            for wrong, answer in texts:
                row, start = _row(host, prompts[place], answer)
                found.append((index, place, wrong, row, start))
    if not found:
        what = (
            "wrong answers" if answers == "wrong" and wordings == "edit" else f"{wordings} wordings"
        )
        raise ValueError(f"none of these {len(questions)} questions has {what}")
    return _pad([f[:3] for f in found], [f[3] for f in found], [f[4] for f in found])


def site_logits(host: AbstractHost | Any, rows: AnswerRows) -> Float[Tensor, "site d_vocab"]:
    """The model's logits at every site, in its own dtype; differentiable where gradients are on.

    One batched pass where gradients are on, batches of rows else.
    """
    host = get_host(host)
    if torch.is_grad_enabled():
        return _logits(host, rows)
    parts = rows.by_length(BATCH)
    found = torch.cat([_logits(host, rows.select(part)) for part in parts])
    return found[rows.sites_of(parts).argsort().to(found.device)]


def site_margins(
    logits: Float[Tensor, "site d_vocab"], label: Int[Tensor, " site"]
) -> Float[Tensor, " site"]:
    """logit(label) - the largest other logit: positive where the label is the most likely token."""
    label = label.to(logits.device)
    others = logits.scatter(1, label[:, None], -torch.inf)
    return logits.gather(1, label[:, None])[:, 0] - others.max(1).values


def site_log_odds(
    logits: Float[Tensor, "site d_vocab"], label: Int[Tensor, " site"]
) -> Float[Tensor, " site"]:
    """log p / (1 - p) of the label: logit(label) - logsumexp of the others, smooth everywhere."""
    label = label.to(logits.device)
    others = logits.scatter(1, label[:, None], -torch.inf)
    return logits.gather(1, label[:, None])[:, 0] - others.logsumexp(1)


def known_rows(logits: Float[Tensor, "site d_vocab"], rows: AnswerRows) -> Bool[Tensor, " row"]:
    """Whether every token of a row's answer is the argmax at its site."""
    wrong = (logits.argmax(1).cpu() != rows.label).long()
    return torch.zeros(rows.n_rows, dtype=torch.long).index_add_(0, rows.site_row, wrong) == 0


def accuracy(model: Any, questions: Sequence[Question], wordings: Wordings = "edit") -> float:
    """The share of (question, wording) that a model knows.

    Raises:
        ValueError: as `answer_rows`.
    """
    host = get_host(model)
    rows = answer_rows(host, questions, wordings=wordings)
    with torch.no_grad():
        return float(known_rows(site_logits(host, rows), rows).double().mean())


def _logits(host: AbstractHost, rows: AnswerRows) -> Tensor:
    return logits_at(host, rows.tokens, rows.site_row, rows.site_pos)


def _row(host: AbstractHost, prompt: str, answer: str) -> tuple[Tensor, int]:
    """Tokens of prompt and answer, and where the answer begins."""
    before, whole = host.to_tokens(prompt), host.to_tokens(prompt + answer)
    start = len(before)
    if len(whole) <= start or not torch.equal(whole[:start], before):
        raise ValueError(
            f"the answer {answer!r} merges with the end of the prompt {prompt[-30:]!r} into other "
            "tokens: begin the answer with a space, and end the prompt without one"
        )
    unknown = getattr(host.tokenizer, "unk_token_id", None)
    if int(whole.max()) >= host.d_vocab or (unknown is not None and unknown in whole[1:].tolist()):
        raise ValueError(f"{prompt + answer!r} has tokens that this model lacks: reword it")
    if len(whole) > host.n_ctx:
        raise ValueError(
            f"a prompt and its answer have {len(whole)} tokens, the model's context {host.n_ctx}: "
            f"shorten {prompt[:40]!r}..."
        )
    return whole, start


def _pad(
    indices: list[tuple[int, int, int]], tokens: list[Tensor], starts: list[int]
) -> AnswerRows:
    lengths = torch.tensor([len(row) for row in tokens])
    question, wording, wrong = torch.tensor(indices).T
    spans = [torch.arange(start, len(row)) for row, start in zip(tokens, starts, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    rows = torch.repeat_interleave(
        torch.arange(len(tokens)), torch.tensor([len(span) for span in spans])
    )
    places = torch.cat(spans)
    return AnswerRows(
        tokens=padded,
        lengths=lengths,
        question=question.contiguous(),
        wording=wording.contiguous(),
        wrong=wrong.contiguous(),
        site_row=rows,
        site_pos=places - 1,
        label=padded[rows, places],
    )
