"""Each metric beside a twin that is written from its definition alone."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_bilinear.unlearning.answer_rows import AnswerRows
from tl_bilinear.unlearning.leace import fit_eraser
from tl_bilinear.unlearning.metrics import (
    forget_quality,
    forget_truth_ratio,
    kolmogorov_smirnov,
    mean_scores,
    retain_truth_ratio,
    score_rows,
    truth_ratios,
)
from tl_bilinear.unlearning.rounding import rounded

pytestmark = pytest.mark.one_major(4)

CLOSE: Any = {"rtol": 1e-9, "atol": 1e-12}


def rows_of(lengths: list[int], labels: torch.Tensor, **marks: list[int]) -> AnswerRows:
    """Rows whose answers have these lengths; only what metrics read is meaningful."""
    n = len(lengths)
    site_row = torch.repeat_interleave(torch.arange(n), torch.tensor(lengths))
    count = torch.arange(n)
    return AnswerRows(
        tokens=torch.zeros(n, 9, dtype=torch.long),
        lengths=torch.full((n,), 9),
        question=torch.tensor(marks.get("question", count.tolist())),
        wording=torch.tensor(marks.get("wording", [0] * n)),
        wrong=torch.tensor(marks.get("wrong", [-1] * n)),
        site_row=site_row,
        site_pos=torch.zeros(len(site_row), dtype=torch.long),
        label=labels,
    )


def by_the_book(logits: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
    """open-unlearning's definitions for one answer, loop and floor included."""
    n = len(labels)
    losses = [-math.log(torch.softmax(logits[i], 0)[labels[i]]) for i in range(n)]
    predictions = [int(logit.argmax()) for logit in logits]
    k = 0
    for k in range(n):  # noqa: B007 (as coded there: k stays n - 1 where nothing matches)
        if predictions[k:] == labels[k:].tolist():
            break
    others = [logits[i][[j for j in range(len(logits[i])) if j != labels[i]]] for i in range(n)]
    return SimpleNamespace(
        known=predictions == labels.tolist(),
        margin=min(float(logits[i][labels[i]] - others[i].max()) for i in range(n)),
        nll=sum(losses) / n,
        probability=math.exp(-sum(losses) / n),
        exact_memorisation=sum(p == y for p, y in zip(predictions, labels.tolist(), strict=True))
        / n,
        extraction_strength=1 - k / n,
    )


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6), seed=st.integers(0, 999))
def test_scores_are_open_unlearnings(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(sum(lengths), 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (sum(lengths),), generator=generator)
    # Half of the sites are made right, so that suffixes match.
    right = torch.rand(len(labels), generator=generator) < 0.6
    logits[right, labels[right]] += 9.0
    found = score_rows(logits, rows_of(lengths, labels))
    mean = mean_scores(found)
    twins = [
        by_the_book(a, b) for a, b in zip(logits.split(lengths), labels.split(lengths), strict=True)
    ]
    for name in vars(twins[0]):
        expected = torch.tensor([float(getattr(twin, name)) for twin in twins], dtype=torch.float64)
        values = getattr(found, name).double()
        torch.testing.assert_close(values, expected, **CLOSE)
        field = "accuracy" if name == "known" else name
        assert getattr(mean, field) == pytest.approx(float(values.mean()), rel=1e-12)
    assert mean.n_rows == len(lengths)


def test_the_least_extraction_strength_is_one_over_n():
    logits = torch.eye(3, dtype=torch.float64)[[0, 0, 0, 0]]
    for labels, strength in (
        ([1, 1, 1, 1], 1 / 4),  # nothing right: 1/n, not 0
        ([0, 0, 0, 1], 1 / 4),  # the last one wrong: no suffix
        ([1, 1, 1, 0], 1 / 4),
        ([0, 1, 0, 0], 2 / 4),
        ([0, 0, 0, 0], 1.0),
    ):
        found = score_rows(logits, rows_of([4], torch.tensor(labels)))
        assert found.extraction_strength.tolist() == [strength]


def test_truth_ratios_by_hand():
    # Two questions; the first in two wordings, with wrong answers; the second has none.
    right = rows_of([1, 1, 1], torch.zeros(3).long(), question=[0, 0, 1], wording=[0, 1, 0])
    wrong = rows_of(
        [1] * 4,
        torch.zeros(4).long(),
        question=[0, 0, 0, 0],
        wording=[0, 0, 1, 1],
        wrong=[0, 1, 0, 1],
    )
    right_nll = torch.tensor([1.0, 0.5, 7.0], dtype=torch.float64)
    wrong_nll = torch.tensor([2.0, 4.0, 0.1, 0.3], dtype=torch.float64)
    found = truth_ratios(right_nll, right, wrong_nll, wrong)
    first = math.exp(-3.0) / (math.exp(-1.0) + 1e-10)
    second = math.exp(-0.2) / (math.exp(-0.5) + 1e-10)
    torch.testing.assert_close(found, torch.tensor([first, second], dtype=torch.float64), **CLOSE)
    assert second > 1
    assert forget_truth_ratio(found) == pytest.approx((first + 1 / (second + 1e-10)) / 2)
    assert retain_truth_ratio(found) == pytest.approx((1 - first) / 2)


def by_enumeration(first: list[float], second: list[float]) -> tuple[float, float]:
    """The distance, and the share of all ways to deal the values that give at least as much."""

    def distance(a: list[float], b: list[float]) -> float:
        def below(values: list[float], at: float) -> float:
            return sum(v <= at for v in values) / len(values)

        return max(abs(below(a, at) - below(b, at)) for at in [*a, *b])

    observed = distance(first, second)
    # Dealt as if no two values were equal, which is how scipy counts.
    n = len(first) + len(second)
    hits = total = 0
    for chosen in itertools.combinations(range(n), len(first)):
        rest = [i for i in range(n) if i not in chosen]
        total += 1
        hits += distance(list(map(float, chosen)), list(map(float, rest))) >= observed - 1e-12
    return observed, hits / total


@settings(max_examples=15)
@given(
    first=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    second=st.lists(st.integers(0, 6), min_size=1, max_size=5),
)
def test_kolmogorov_smirnov_by_enumeration(first, second):
    a, b = list(map(float, first)), list(map(float, second))
    distance, p = kolmogorov_smirnov(torch.tensor(a), torch.tensor(b))
    expected = by_enumeration(a, b)
    assert distance == pytest.approx(expected[0], abs=1e-12)
    assert p == pytest.approx(expected[1], rel=1e-9)


def test_kolmogorov_smirnov_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    for n, m, shift in ((30, 30, 0.0), (60, 45, 0.7), (200, 150, 0.1)):
        a = torch.randn(n, generator=generator, dtype=torch.float64)
        b = torch.randn(m, generator=generator, dtype=torch.float64) + shift
        there = stats.ks_2samp(a.numpy(), b.numpy())
        found = kolmogorov_smirnov(a, b)
        assert found == (pytest.approx(there.statistic), pytest.approx(there.pvalue, rel=1e-8))
        assert forget_quality(a, b) == found[1]


def test_large_samples_take_the_limit():
    a, b = torch.linspace(0, 1, 1001), torch.linspace(0, 1, 1001) + 0.06
    distance, p = kolmogorov_smirnov(a, b)
    assert distance == pytest.approx(60 / 1001, abs=2e-3)
    # Kolmogorov's series at sqrt(n m / (n + m)) D, within the correction's few per cent.
    z = math.sqrt(1001 / 2) * distance
    series = sum(2 * (-1) ** (k - 1) * math.exp(-2 * (k * z) ** 2) for k in range(1, 50))
    assert p == pytest.approx(series, rel=0.1)
    assert kolmogorov_smirnov(a, a)[1] == 1.0


@pytest.mark.parametrize(
    ("first", "second", "words"), [([], [1.0], "two samples"), ([math.nan], [1.0], "not finite")]
)
def test_samples_that_cannot_be_compared(first, second, words):
    with pytest.raises(ValueError, match=words):
        kolmogorov_smirnov(torch.tensor(first), torch.tensor(second))


@given(seed=st.integers(0, 99), labels=st.integers(1, 3))
def test_leace_leaves_nothing_for_a_linear_probe_and_changes_least(seed, labels):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(40, labels, generator=generator, dtype=torch.float64)
    mixing = torch.randn(labels, 6, generator=generator, dtype=torch.float64)
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64) + z @ mixing + 3.0
    eraser = fit_eraser(x, z)
    erased = eraser(x)
    centred = z - z.mean(0)
    # Nothing: least squares from the erased activations explain no label; before, they did.
    assert (erased - erased.mean(0)).mT.matmul(centred).abs().max() < 1e-9 * len(x)
    assert (x - x.mean(0)).mT.matmul(centred).abs().max() > 1
    # An affine projection: twice is once, the mean stays.
    torch.testing.assert_close(eraser(erased), erased, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(erased.mean(0), x.mean(0), rtol=1e-9, atol=1e-9)
    # Least: the orthogonal projection away from Sigma_xz's columns also erases, at more change.
    basis = torch.linalg.qr((x - x.mean(0)).mT @ centred).Q
    other = x - (x - x.mean(0)) @ basis @ basis.mT
    assert (erased - x).square().sum() <= (other - x).square().sum() * (1 + 1e-9)


@pytest.mark.parametrize(
    ("x", "z", "words"),
    [
        (torch.zeros(3, 2), torch.zeros(2, 1), "as many"),
        (torch.zeros(3, 2), torch.ones(3, 1), "never vary"),
    ],
)
def test_what_cannot_be_erased(x, z, words, unchecked):
    with pytest.raises(ValueError, match=words):
        fit_eraser(x, z)


@given(bits=st.integers(2, 8), seed=st.integers(0, 99))
def test_rounding_by_hand(bits, seed):
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)).double()
    found = rounded(weight, (1,), bits)
    for row, other in zip(weight, found, strict=True):
        step = float(row.abs().max()) / (2 ** (bits - 1) - 1)
        for value, rounded_value in zip(row.tolist(), other.tolist(), strict=True):
            assert abs(value - rounded_value) <= step / 2 * (1 + 1e-9)
            assert abs(rounded_value / step - round(rounded_value / step)) < 1e-9
    assert torch.equal(rounded(torch.zeros(2, 2), (1,), 4), torch.zeros(2, 2))
