"""Contrastive directions beside the dense generalised eigenproblem, and what removing them does."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import normal
from tl_bilinear.unlearning.contrast import (
    contrastive_directions,
    moment_overlap,
    second_moment,
)

pytestmark = pytest.mark.one_major(4)

EXACT: Any = dict(rtol=1e-9, atol=1e-11)


@st.composite
def problems(draw):
    """Two second moments, of fewer or more vectors than their size, and that of all vectors."""
    d = draw(st.integers(1, 6))
    sets = [normal(draw, draw(st.integers(1, 9)), d) for _ in range(2)]
    return *(second_moment(each) for each in sets), second_moment(torch.cat(sets))


@given(problems(), st.sampled_from(["activations", "gradients"]), st.booleans())
def test_they_solve_the_dense_problem(problem, moments, whitened):
    f, r, t = problem
    d = len(f)
    found = contrastive_directions(
        f, r, d, moments=moments, whiten=t if whitened else None, shrinkage=0.01
    )
    if whitened:  # the square root by another way, and the problem written out
        values, vectors = torch.linalg.eigh(t + 0.01 * t.trace() / d * torch.eye(d).double())
        root = vectors @ values.sqrt().diag() @ vectors.T
        inverse = torch.linalg.inv(root)
        into = inverse if moments == "activations" else root
        penalty = torch.linalg.inv(into @ into)
        penalty = penalty * (into @ (f + r) @ into).trace() / d
    else:
        penalty = torch.eye(d).double() * (f + r).trace() / d
    total = f + r + 0.01 * penalty
    solved, dual = (
        (found.readers, found.writers)
        if moments == "activations"
        else (found.writers, found.readers)
    )
    scale = total.norm() * solved.norm()
    assert (f @ solved.T - total @ solved.T * found.shares).norm() < 1e-9 * scale
    torch.testing.assert_close(solved @ total @ solved.T, torch.eye(d).double(), **EXACT)
    torch.testing.assert_close(dual, solved @ total, **EXACT)
    assert (found.shares.diff() <= 1e-12).all()
    dense = torch.linalg.eigvals(torch.linalg.solve(total, f)).real.sort(descending=True).values
    torch.testing.assert_close(found.shares, dense.clamp(0, 1), rtol=1e-7, atol=1e-9)


@given(problems(), st.data())
def test_removing_takes_these_components_and_no_other(problem, data):
    f, r, _ = problem
    every = contrastive_directions(f, r, len(f))
    some = every.truncate(data.draw(st.integers(0, len(f))))
    y = torch.randn(4, 3, len(f)).double()
    gone = some.removed(y)
    torch.testing.assert_close(gone, y @ some.projection(), **EXACT)
    amplitudes = every.amplitudes(y)
    amplitudes[..., : some.k] = 0
    torch.testing.assert_close(every.amplitudes(gone), amplitudes, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(some.removed(gone), gone, rtol=1e-8, atol=1e-9)


@given(problems())
def test_a_change_of_basis_changes_nothing_but_the_basis(problem):
    """Nearly without shrinkage the components are the space's own, whatever its coordinates."""
    f, r, _ = problem
    d = len(f)
    full = torch.eye(d).double()  # both moments of full rank: else shrinkage decides
    f, r = f + 0.1 * full, r + 0.2 * full
    basis = torch.randn(d, d).double() + 3 * full
    here = contrastive_directions(f, r, d, shrinkage=1e-12)
    there = contrastive_directions(basis.T @ f @ basis, basis.T @ r @ basis, d, shrinkage=1e-12)
    torch.testing.assert_close(here.shares, there.shares, rtol=1e-6, atol=1e-8)


def test_whitening_decides_where_scales_differ():
    """A tiny direction of forgetting is seen with whitening, and lost in the shrinkage without."""
    forget = torch.tensor([1e-6, 0, 1]).double().diag()
    retain = torch.tensor([0, 1, 1]).double().diag()
    plain = contrastive_directions(forget, retain, 1)
    white = contrastive_directions(forget, retain, 1, whiten=(forget + retain) / 2)
    assert white.shares[0] > 0.4 and white.writers[0].abs().argmax() == 0
    assert plain.shares[0] < 0.51 and plain.writers[0].abs().argmax() == 2


def test_separate_sets_are_separated_and_overlap_is_a_cosine():
    basis = torch.linalg.qr(torch.randn(6, 6).double()).Q
    forget, retain = (torch.randn(50, 3).double() @ part for part in (basis[:3], basis[3:]))
    f, r = second_moment(forget), second_moment(retain)
    found = contrastive_directions(f, r, 3)
    assert (found.shares > 0.98).all() and found.overlap < 1e-12
    assert found.removed(forget).norm() < 1e-9 * forget.norm()
    torch.testing.assert_close(found.removed(retain), retain, rtol=1e-6, atol=1e-6)
    assert moment_overlap(f, f) == pytest.approx(1)
    assert moment_overlap(f, f + r) == pytest.approx(float(f.norm() / (f + r).norm()))


def test_second_moments():
    x = torch.randn(5, 4, 3) + 2
    rows = x.reshape(20, 3).double()
    torch.testing.assert_close(second_moment(x), rows.T @ rows / 20)
    torch.testing.assert_close(
        second_moment(x, centred=True), torch.cov(rows.T, correction=0), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(k=0), "between 1 and 2"),
        (dict(k=3), "between 1 and 2"),
        (dict(shrinkage=0.0), "above 0"),
        (dict(shrinkage=float("nan")), "above 0"),
        (dict(moments="weights"), "activations"),
        (dict(forget_moment=torch.eye(3)), "one size"),
        (dict(forget_moment=torch.eye(2) * float("nan")), "finite"),
        (dict(forget_moment=torch.tensor([[1.0, 1], [0, 1]])), "not symmetric"),
        (dict(retain_moment=-torch.eye(2)), "negative eigenvalue"),
        (dict(forget_moment=torch.zeros(2, 2), retain_moment=torch.zeros(2, 2)), "zero"),
        (dict(whiten=torch.zeros(2, 2)), "`whiten` is zero"),
    ],
)
def test_bad_input(change, words, unchecked):
    two = torch.eye(2)
    arguments: dict[str, Any] = dict(forget_moment=two, retain_moment=two, k=1)
    with pytest.raises(ValueError, match=words):
        contrastive_directions(**arguments | change)
    with pytest.raises(ValueError, match="at least one"):
        second_moment(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="is zero"):
        moment_overlap(torch.zeros(2, 2), torch.eye(2))
    with pytest.raises(ValueError, match="between 0 and 1"):
        contrastive_directions(torch.eye(2), torch.eye(2), 1).truncate(2)
