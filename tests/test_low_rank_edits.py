"""Steps along edits of one rank: the tangent space and its Jacobian against dense twins."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tl_bilinear.unlearning.descent import STRIDE, _System
from tl_bilinear.unlearning.layer_basis import (
    LayerBasis,
    LayerGradients,
    WhitenedGradients,
    whiten,
)
from tl_bilinear.unlearning.low_rank import TangentGradients, cut, cut_all

pytestmark = pytest.mark.one_major(4)
SITES, ROWS, POS = 7, 4, 5
SIZES = st.integers(2, 9)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def projector(x: Tensor, rank: int) -> Tensor:
    """Onto the span of what moving either factor of x does."""
    left, right = cut(x, rank)
    eye = [torch.eye(size, dtype=torch.float64) for size in x.shape]
    by_left = torch.einsum("fg,tw->fwgt", eye[0], right).flatten(2).flatten(0, 1)
    by_right = torch.einsum("ft,wv->fwtv", left, eye[1]).flatten(2).flatten(0, 1)
    spanned = torch.cat([by_left, by_right], 1)
    return spanned @ torch.linalg.pinv(spanned, rtol=1e-10)


def jacobian(features: int, writers: int, seed: int):
    basis = LayerBasis(0, features, writers)
    moments = [normal(12, size, seed=seed + size) for size in (features, writers)]
    read, said = (each.mT @ each for each in moments)
    white = whiten(basis, read, said, 1e-2)
    return white.read(
        LayerGradients(
            normal(ROWS, POS, features, seed=seed),
            normal(SITES, POS, writers, seed=seed + 1),
            torch.arange(SITES) % ROWS,
        )
    )


@given(SIZES, SIZES, st.integers(1, 4), st.integers(0, 999))
def test_the_tangent_jacobian_is_the_whole_one_projected(features, writers, rank, seed):
    whole = jacobian(features, writers, seed)
    left, right = cut(normal(features, writers, seed=seed + 2), rank)
    x = left @ right
    dense = whole.dense() @ projector(x, rank)
    mine = TangentGradients.at(x, rank, whole)
    rounding = 1e-8 * float(dense.abs().max()) ** 2
    close = partial(torch.testing.assert_close, rtol=1e-8, atol=rounding)
    close(mine.kernel(), dense @ dense.mT)
    weights = normal(SITES, seed=seed + 3)
    pulled = mine.pull_back(weights)
    close(pulled.flatten(), weights @ dense)
    close(mine.push(pulled), dense @ pulled.flatten())
    # The edit itself is a tangent direction: a step may take it back whole.
    close(mine.push(x), whole.dense() @ x.flatten())


@given(SIZES, SIZES, st.integers(1, 4), st.integers(0, 999))
def test_cutting_back_leaves_a_tangent_step_as_it_is_to_first_order(features, writers, rank, seed):
    x = cut_all({0: normal(features, writers, seed=seed)}, rank)[0]
    step = projector(x, rank) @ normal(features, writers, seed=seed + 1).flatten()
    step = step.view_as(x) / step.norm()
    # What is cut off is of second order in the step, over the smallest term that is kept.
    smallest = torch.linalg.svdvals(x)[: min(rank, features, writers)].min()
    for size in (1e-2, 1e-3):
        moved = x + size * smallest * step
        lost = (cut_all({0: moved}, rank)[0] - moved).norm()
        assert lost <= 2 * size**2 * smallest + 1e-12


def test_cut_is_the_nearest_and_no_more_terms_than_asked():
    x = normal(6, 9, seed=0)
    left, right = cut(x, 3)
    assert left.shape == (6, 3) and right.shape == (3, 9)
    torch.testing.assert_close(right @ right.mT, torch.eye(3, dtype=torch.float64))
    missed = torch.linalg.svdvals(x)[3:].square().sum()
    torch.testing.assert_close((x - left @ right).square().sum(), missed)
    left, right = cut(x, 99)
    torch.testing.assert_close(left @ right, x)


def test_a_direction_out_of_the_tangent_space_is_not_seen():
    """Control: the kernel is smaller than the whole one, by what the rank leaves out."""
    whole = jacobian(6, 8, seed=5)
    x = cut_all({0: normal(6, 8, seed=7)}, 2)[0]
    mine = TangentGradients.at(x, 2, whole)
    missing = torch.linalg.eigvalsh(whole.kernel() - mine.kernel())
    assert missing.min() > -1e-9 * missing.max() and missing.max() > 0.1


@given(st.integers(1, 7), st.sampled_from([0.0, 0.5, 13.5]), st.integers(0, 999))
def test_linear_demands_end_as_a_step_foresees(sites, damping, seed):
    """Also where a demand is missed by more than a step asks for."""
    rows = normal(sites, 5, seed=seed)
    basis = whiten(LayerBasis(0, 1, 5), torch.eye(1).double(), torch.eye(5).double(), 0.0)
    ones = torch.ones(sites, 1, 1, dtype=torch.float64)
    jacobian = WhitenedGradients(basis, ones, rows[:, None], torch.arange(sites))
    sign = torch.where(torch.arange(sites) % 2 == 0, 1.0, -1.0).double()
    x, short = normal(1, 5, seed=seed + 1), 4 * normal(sites, seed=seed + 2)
    kernel, softness = rows @ rows.mT * sign * sign[:, None], 1e-2
    system = _System({0: jacobian}, kernel, short, sign, softness, None)
    moved, foreseen = system.step({0: x}, damping)
    missed = (short - sign * (rows @ (moved[0] - x)[0])).clamp_min(0)
    ends = float(moved[0].square().sum() / 2 + missed.square().sum() / (2 * softness))
    # A demand may be met beyond what was asked of it: the end is then better than foreseen.
    assert ends <= foreseen * (1 + 1e-6) + 1e-9
    if float(short.max()) <= STRIDE:
        assert ends == pytest.approx(foreseen, rel=1e-6, abs=1e-9)
