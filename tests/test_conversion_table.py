"""The table of ways to convert: equal tokens, resumed, ranked, with intervals over the seeds."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tl_bilinear.checkpoints.bundled import ZOO
from tl_bilinear.recipes import conversion_table
from tl_bilinear.recipes.conversion_table import (
    BUDGET,
    FIRST_SCHEDULES,
    LOSSES,
    Outcome,
    Way,
    build,
)
from tl_bilinear.recipes.interval import Interval, student_interval

pytestmark = pytest.mark.one_major(3)

TINY = replace(BUDGET, n_steps=2, batch_size=1, window=16, warmup_steps=1)


@pytest.fixture(scope="module")
def text() -> Path:
    return ZOO / "stories.txt"  # of its 200 stories those behind the first 150 are trained on


def test_every_way_is_run_with_every_seed_and_resumed(text: Path, tmp_path: Path, monkeypatch):
    options = {"text": text, "n_stories": 0, "n_evaluated": 1, "budget": TINY, "seeds": (0, 1)}
    table = build(tmp_path, **options)
    ways = [outcome.way for outcome in table.outcomes]
    assert len(set(ways)) == len(ways) == len(LOSSES) * len(FIRST_SCHEDULES) + 3
    first = [outcome for outcome in table.outcomes if outcome.way.schedule in FIRST_SCHEDULES]
    assert {outcome.way.loss for outcome in table.outcomes if outcome not in first} == {
        first[0].way.loss
    }
    means = [sum(outcome.nats("stories.txt")) for outcome in table.outcomes]
    assert means == sorted(means) and table.best == ways[0]
    folders = list(tmp_path.glob("conversion-*"))
    assert len(folders) == 2 * len(ways)  # one run for every way and seed
    page = conversion_table.page(table)
    for outcome in table.outcomes:
        assert f"| {outcome.way.loss} | {outcome.way.schedule} | {means_of(outcome)} |" in page
    words = " ".join(page.split())
    assert (
        "32 tokens in all" in words and "The default of `tlb.bilinearize` is KL, linear: " in words
    )

    def again(*arguments, **options):
        raise AssertionError("a finished run was run again")

    monkeypatch.setattr(conversion_table, "bilinearize", again)
    assert build(tmp_path, **options) == table
    next(iter(folders)).joinpath("losses.json").unlink()
    with pytest.raises(AssertionError, match="run again"):
        build(tmp_path, **options)


def means_of(outcome: Outcome) -> Interval:
    return student_interval(outcome.nats("stories.txt"))


def test_ways_differ_in_loss_and_schedule_alone():
    configs = [Way(loss, s).config(TINY, 3) for loss in LOSSES for s in ("abrupt", "linear")]
    for config in configs:
        same = replace(config, kl_weight=1.0, next_token_weight=0.0, schedule="linear", seed=0)
        assert same == TINY
        assert config.seed == 3
    assert len(set(configs)) == len(configs)
    assert [config.beta(0) for config in configs[:2]] == [0.0, 1.0]


@pytest.mark.parametrize("n", range(2, 11))
def test_intervals_are_students(n: int):
    """95 % of the density of Student's t lies within the quantile, by the trapezoid rule."""
    values = [float(i) for i in range(n)]
    found = student_interval(values)
    assert found.mean == (n - 1) / 2
    quantile = found.half / torch.tensor(values).std().item() * n**0.5
    df = n - 1
    x = torch.linspace(0, quantile, 100_001, dtype=torch.float64)
    constant = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    density = constant * (1 + x**2 / df) ** (-(df + 1) / 2)
    assert 2 * float(torch.trapezoid(density, x)) == pytest.approx(0.95, abs=2e-4)


def test_too_few_seeds_are_refused_before_anything_is_run(tmp_path: Path):
    with pytest.raises(ValueError, match="2 to 10 values, got 1"):
        build(tmp_path, n_stories=0, seeds=(0,))
    assert str(Interval(1.0, 0.25)) == "1.0000 ± 0.2500"
    assert not list(tmp_path.iterdir())
