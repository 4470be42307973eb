"""Questions and their token rows: sites, padding, and every bad input."""

import pytest
import torch
from knowing import knowing
from models import hosts

import tl_bilinear as tlb
from tl_bilinear.unlearning import (
    Question,
    accuracy,
    answer_rows,
    known_rows,
    site_logits,
    site_margins,
)
from tl_bilinear.unlearning.contexts import in_contexts

SHORT = Question("w1 w2", " w3", rewordings=("w4",), unseen=("w5 w6 w7",), wrong=(" w8", " w9 w10"))
LONG = Question("w1 w2 w3 w4", " w5 w6 w7")


@pytest.fixture(scope="module", params=hosts())
def model(request):
    return knowing(request.param)


def test_rows_hold_each_wording_with_its_answer(model):
    rows = answer_rows(model, [SHORT, LONG])
    host = tlb.get_host(model)
    assert rows.question.tolist() == [0, 0, 1] and rows.wording.tolist() == [0, 1, 0]
    assert rows.lengths.tolist() == [4, 3, 8] and rows.wrong.tolist() == [-1, -1, -1]
    texts = [
        " ".join(host.str_tokens(row[:n])) for row, n in zip(rows.tokens, rows.lengths, strict=True)
    ]
    assert texts == ["<s> w1 w2 w3", "<s> w4 w3", "<s> w1 w2 w3 w4 w5 w6 w7"]
    assert rows.site_row.tolist() == [0, 1, 2, 2, 2] and rows.site_pos.tolist() == [2, 1, 4, 5, 6]
    assert rows.site_index.tolist() == [0, 0, 0, 1, 2]
    assert host.str_tokens(rows.label) == ["w3", "w3", "w5", "w6", "w7"]


def test_other_wordings_and_answers(model):
    assert answer_rows(model, [SHORT, LONG], wordings="unseen").wording.tolist() == [2]
    assert answer_rows(model, [SHORT], wordings="all").wording.tolist() == [0, 1, 2]
    wrong = answer_rows(model, [SHORT, LONG], answers="wrong")
    assert wrong.wrong.tolist() == [0, 1, 0, 1] and wrong.wording.tolist() == [0, 0, 1, 1]
    assert wrong.n_sites == 6


def test_logits_are_those_of_each_row_by_itself(model):
    rows = answer_rows(model, [SHORT, LONG], wordings="all")
    with torch.no_grad():
        together = site_logits(model, rows)
    at = 0
    for row, length in zip(rows.tokens, rows.lengths, strict=True):
        alone = model(row[None, :length])[0]
        for pos in rows.site_pos[rows.site_row == at]:
            site = int(((rows.site_row == at) & (rows.site_pos == pos)).nonzero())
            torch.testing.assert_close(together[site], alone[pos].detach(), rtol=1e-9, atol=1e-9)
        at += 1
    assert site_logits(model, rows).requires_grad


def test_selected_rows_are_the_same_rows(model):
    rows = answer_rows(model, [SHORT, LONG], wordings="all")
    some = rows.select(torch.tensor([3, 1]))
    assert some.question.tolist() == [1, 0] and some.site_row.tolist() == [0, 0, 0, 1]
    assert torch.equal(some.label, rows.label[[3, 4, 5, 1]])
    with torch.no_grad():
        expected = site_logits(model, rows)[[3, 4, 5, 1]]
        torch.testing.assert_close(site_logits(model, some), expected, rtol=1e-9, atol=1e-9)
    assert rows.select(rows.question == 1).n_rows == 1
    parts = rows.by_length(2)
    assert [rows.lengths[part].tolist() for part in parts] == [[3, 4], [5, 8]]
    assert rows.sites_of(parts).tolist() == [1, 0, 2, 3, 4, 5]


def test_a_row_is_known_where_every_token_is_the_argmax(model):
    said = model(tlb.get_host(model).to_tokens("w1 w2")[None])[0, -1].argmax()
    word = tlb.get_host(model).str_tokens(said[None])[0]
    known, other = Question("w1 w2", f" {word}"), Question("w1 w2", " w36 w35")
    assert word not in ("w36", "<unk>")
    rows = answer_rows(model, [known, other])
    with torch.no_grad():
        logits = site_logits(model, rows)
    assert known_rows(logits, rows).tolist() == [True, False]
    assert accuracy(model, [known, other]) == 0.5
    margins = site_margins(logits, rows.label)
    assert margins[0] > 0 > margins[1]
    top = logits[0].sort(descending=True).values
    assert margins[0] == top[0] - top[1]
    half = logits.clone()  # one token of two is known: the row is not
    half[1:] = 0
    half[1, rows.label[1]] = half[2, 0] = 1
    assert known_rows(half, rows).tolist() == [True, False]


def test_questions_in_contexts():
    question = Question("A boy Tom has", " w3", rewordings=("Tom's pet is",), unseen=("Tom has",))
    (behind,) = in_contexts([question], ["One day it rained. No."], 2)
    assert behind.wordings[:2] == question.wordings and behind.unseen == ("Tom has",)
    assert behind.wordings[2:] == (
        "One day it rained. A boy Tom has",
        "One day it rained. Tom's pet is",
    )
    assert in_contexts([question], ["No."], 2) == (question,)
    assert in_contexts([question], ["One day it rained."], 0) == (question,)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Question("", " w1"), "empty prompt"),
        (lambda: Question("w1", " "), "empty answer"),
        (lambda: Question("w1", " w2", rewordings=("w1",)), "given twice"),
        (lambda: Question("w1", " w2", rewordings=("w3",), unseen=("w3",)), "given twice"),
        (lambda: Question("w1", " w2", wrong=(" w2",)), "among `wrong`"),
        (lambda: Question("w1", " w2", unseen="w3"), "tuple of strings"),  # pyright: ignore
        (lambda: Question(1, " w2"), "must be a string"),  # pyright: ignore
    ],
)
def test_bad_questions(make, words, unchecked):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("questions", "options", "words"),
    [
        ([], {}, "`questions` is empty"),
        (["w1"], {}, "Question objects"),
        ([Question("w1", " unheard")], {}, "tokens that this model lacks"),
        ([LONG], {"wordings": "unseen"}, "has unseen wordings"),
        ([LONG], {"answers": "wrong"}, "has wrong answers"),
        ([LONG], {"wordings": "seen"}, "must be one of"),
        ([Question(" ".join(["w1"] * 40), " w2")], {}, "the model's context 32"),
    ],
)
def test_bad_rows(model, questions, options, words, unchecked):
    with pytest.raises(ValueError, match=words):
        answer_rows(model, questions, **options)


def test_an_answer_that_merges_with_its_prompt_is_refused(unchecked):
    model = tlb.load("stories-5l")
    with pytest.raises(ValueError, match="merges with the end"):
        answer_rows(model, [Question("Lily was very hap", "py")])
