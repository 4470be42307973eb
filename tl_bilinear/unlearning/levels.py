"""How sure a model is of answers that it has never learnt: what forgetting should end at.

Further down is not better: an answer that is less likely than any other is a trace of what was
forgotten.
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.unlearning.answer_rows import (
    AnswerRows,
    answer_rows,
    site_log_odds,
    site_logits,
)
from tl_bilinear.unlearning.question import Question, named, whole_word

N_NAMES = 8


def never_learnt_odds(
    host: AbstractHost, questions: Sequence[Question], *, names: int = N_NAMES, seed: int = 0
) -> Float[Tensor, " site"]:
    """Log-odds of the answers' tokens (site by site of `answer_rows`) had they not been learnt.

    Where the subject stands in the wordings, the mean over invented subjects in its place; else,
    where there are wrong answers, the mean log-odds of these once the answer is taken out.

    Raises:
        ValueError: a question with neither.
    """
    taken = {word for q in questions for text in (*q.wordings, *q.unseen) for word in text.split()}
    invented = [n for n in invented_names(names, taken, seed) if not _has_unknown(host, n)]
    found: dict[int, Float[Tensor, " site"]] = {}
    by_subject = []
    for index, question in enumerate(questions):
        if (
            invented
            and question.subject
            and all(named(question.subject, text) for text in question.wordings)
        ):
            by_subject.append(index)
        elif question.wrong:
            found[index] = _of_wrong_answers(host, question)
        else:
            raise _no_level(question)
    if by_subject:
        odds = _with_other_subjects(host, [questions[index] for index in by_subject], invented)
        found |= dict(zip(by_subject, odds, strict=True))
    return torch.cat([found[index] for index in range(len(questions))])


def _no_level(question: Question) -> ValueError:
    return ValueError(
        f"nothing says how likely {question.answer!r} is behind {question.prompt!r} for a "
        "model that has not learnt it: give the question a `subject` that stands in its "
        "wordings as a word, or `wrong` answers that part from it, or (to fit_edit) the log-odds "
        "to end at as `target`"
    )


def invented_names(count: int, taken: Collection[str], seed: int = 0) -> tuple[str, ...]:
    """Pronounceable names that are not among `taken`."""
    draw = random.Random(seed)
    names: list[str] = []
    while len(names) < count:
        syllables = [draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(2)]
        name = ("".join(syllables) + draw.choice(["", "n", "r", "l"])).capitalize()
        if name not in names and not any(name in word for word in taken):
            names.append(name)
    return tuple(names)


def _has_unknown(host: AbstractHost, name: str) -> bool:
    unknown = getattr(host.tokenizer, "unk_token_id", None)
    return unknown is not None and unknown in host.to_tokens(f"a {name}").tolist()


def _with_other_subjects(
    host: AbstractHost, questions: Sequence[Question], names: Sequence[str]
) -> list[Float[Tensor, " site"]]:
    """Question by question the mean over the names."""
    others = [_about(question, name) for question in questions for name in names]
    rows = answer_rows(host, others)
    with torch.no_grad():
        odds = site_log_odds(site_logits(host, rows), rows.label)
    of_question = rows.question[rows.site_row].to(odds.device) // len(names)
    return [
        odds[of_question == index].view(len(names), -1).mean(0) for index in range(len(questions))
    ]


def _about(question: Question, name: str) -> Question:
    def other(text: str) -> str:
        return whole_word(question.subject).sub(name, text)

    return replace(
        question,
        prompt=other(question.prompt),
        rewordings=tuple(map(other, question.rewordings)),
        unseen=(),
    )


def _of_wrong_answers(host: AbstractHost, question: Question) -> Float[Tensor, " site"]:
    """At the token where a wrong answer parts from the answer; other tokens stay as they are."""
    rows = answer_rows(host, [question])
    with torch.no_grad():
        logits = site_logits(host, rows)
    odds = site_log_odds(logits, rows.label)
    wrong = answer_rows(host, [question], answers="wrong")
    for row in range(rows.n_rows):
        sites = (rows.site_row == row).nonzero()[:, 0]
        other = (wrong.wording == rows.wording[row]).nonzero()[:, 0]
        parted = [_parting(rows, sites, wrong, int(each)) for each in other]
        # One that goes on behind the answer, or ends within it, is no other answer at any token.
        parted = [each for each in parted if each[1] >= 0]
        if not parted:
            raise _no_level(question)
        first = min(place for place, _ in parted)
        tokens = sorted({token for place, token in parted if place == first})
        at = logits[sites[first]].clone()
        at[rows.label[sites[first]]] = -torch.inf
        labels = torch.tensor(tokens)
        odds[sites[first]] = site_log_odds(at.expand(len(tokens), -1), labels).mean()
    return odds


def _parting(rows: AnswerRows, sites: Tensor, wrong: AnswerRows, row: int) -> tuple[int, int]:
    """(index in the answer, token there) where a wrong answer first differs."""
    ours, theirs = rows.label[sites].tolist(), wrong.label[wrong.site_row == row].tolist()
    for place, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return place, other
    return len(ours), -1
