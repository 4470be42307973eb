"""The runner: cells are computed once, ranks are those of the change, claims are judged."""

import copy
import dataclasses
import json
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.one_major(4)
ZOO = Path(__file__).parents[1] / "tl_bilinear" / "zoo"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Two facts on stories-1l, planted for a few steps: enough that they are known."""
    from tl_bilinear.checkpoints.bundled import beginning, bundled_stories
    from tl_bilinear.recipes.planted.experiments import Experiment
    from tl_bilinear.recipes.planted.facts import planted_facts, questions, sentences
    from tl_bilinear.recipes.planted.planting import PlantingConfig, Stories, plant

    work = tmp_path_factory.mktemp("planted")
    facts = [planted_facts()[k] for k in (0, 30, 3, 33)]
    texts = tuple(beginning(story, 100) for story in bundled_stories()[:12])
    config = PlantingConfig(
        n_steps=40, learning_rate=6e-3, windows=1, window=16, rows=8, story_weight=1.0
    )
    stories = Stories(texts[:6], texts[6:], "bundled")

    def planted(label, kept):
        options = {"label": label, "config": config, "progress": False}
        return plant("stories-1l", sentences(kept), stories, work, **options)

    return Experiment(
        model="stories-1l",
        scope="names-0",
        planted=planted("facts", facts),
        gold=planted("gold", facts[2:]),
        forget=tuple(questions(facts[:2])),
        retain=tuple(questions(facts[2:])),
        near=(),
        far=texts[:2],
        edit_texts=texts[:6],
        held_out_texts=texts[6:],
        first_mentions=("Once there was a", "He saw a"),
        later_mentions=("A wug ran. The",),
        concept_stories=("A wug ran.",),
    )


def test_cells_are_computed_once(tiny, tmp_path, monkeypatch):
    from tl_bilinear.recipes.planted import cells
    from tl_bilinear.recipes.planted.plans import Plan, plans
    from tl_bilinear.unlearning.relearning import RelearningConfig

    monkeypatch.setattr(cells, "RELEARNING", RelearningConfig(steps=4, every=4, rows=4))
    (every,) = plans(["contrastive modes"])
    candidates = every.candidates(tiny.open(tiny.planted))
    assert [vars(each)["k"] for each in candidates] == [1, 3, 8, 16]
    plan = Plan(every.name, every.method, (("k", 3),))
    began = time.monotonic()
    gold = cells.gold_cell(tiny, tmp_path)
    before = cells.unedited_cell(tiny, tmp_path)
    cell = cells.run_cell(tiny, plan, tmp_path)
    assert 0 < gold.took + before.took + cell.took <= time.monotonic() - began
    assert before.scores is not None and gold.scores is not None and gold.concept is not None
    assert before.scores.forget is not None and gold.scores.forget is not None
    assert before.scores.text is not None
    assert before.scores.forget.answers.accuracy > gold.scores.forget.answers.accuracy
    assert before.ranks == (0,) and not before.elsewhere and before.scores.text.kl == 0
    assert gold.concept.first.places == 2 and gold.concept.later.places == 1
    assert cell.trials == () and cell.ranks == (3,)  # one setting needs no trial
    files = sorted((tmp_path / "cells").iterdir())
    assert len(files) == 3 and not any("tmp" in path.name for path in files)

    def fail(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(cells, "measure_model", fail)
    assert cells.run_cell(tiny, plan, tmp_path) == cell
    assert cells.gold_cell(tiny, tmp_path) == gold
    with pytest.raises(AssertionError, match="again"):
        cells.run_cell(tiny, plan, tmp_path, cell.settings)
    other = dataclasses.replace(tiny, scope="names-1")
    with pytest.raises(AssertionError, match="again"):
        cells.gold_cell(other, tmp_path)
    files[0].write_text(json.dumps({"model": 1}))
    with pytest.raises(ValueError, match="cannot be read"):
        for read in (cells.gold_cell, cells.unedited_cell):
            read(tiny, tmp_path)
        cells.run_cell(tiny, plan, tmp_path)


def test_recall_is_measured_once(tiny):
    from tl_bilinear.recipes.planted.recall import measure_recall
    from tl_bilinear.unlearning import accuracy

    facts = dataclasses.replace(tiny, concept_stories=())
    found = measure_recall(facts, ["Lily had a dog. She was happy."])
    assert found.seen == accuracy(tiny.open(tiny.planted), (*tiny.forget, *tiny.retain))
    assert found.loss_before != found.loss_after and found.untaught is not None
    assert measure_recall(facts, ["Another story."]) == found


def test_a_method_that_fails_is_a_cell_of_its_own(tiny, tmp_path):
    from tl_bilinear.recipes.planted.cells import run_cell
    from tl_bilinear.recipes.planted.contrastive_projection import ContrastiveProjection
    from tl_bilinear.recipes.planted.plans import Plan

    cell = run_cell(tiny, Plan("too many", ContrastiveProjection, (("k", 10**6),)), tmp_path)
    assert cell.scores is None and "`k` must be between" in cell.error
    assert (
        run_cell(tiny, Plan("too many", ContrastiveProjection, (("k", 10**6),)), tmp_path) == cell
    )


def test_the_rank_is_that_of_the_change(tiny):
    import tl_bilinear as tlb
    from tl_bilinear.recipes.planted.cells import changed

    model = tlb.load("stories-2l")
    edited = copy.deepcopy(model)
    out = tlb.get_host(edited).mlp_weights(1).tensor.out
    with torch.no_grad():
        out += 0.01 * torch.randn(out.shape[0], 3) @ torch.randn(3, out.shape[1])
    assert changed(model, edited) == ((0, 3), False)
    with torch.no_grad():
        tlb.get_host(edited).mlp_weights(0).tensor.left.mul_(1.01)
    assert changed(model, edited) == ((0, 3), True)


def test_naming_is_the_product_over_the_words_tokens():
    import tl_bilinear as tlb
    from tl_bilinear.recipes.planted.naming import score_naming

    model = tlb.load("stories-2l")
    found = score_naming(model, ["Once there was a", "Lily saw a big"], "squirrel")
    probabilities, ranks = [], []
    for text in ("Once there was a", "Lily saw a big"):
        prompt, whole = model.to_tokens(text), model.to_tokens(f"{text} squirrel")
        logits = model(whole)[0].detach().double()
        worst, product = 0, 1.0
        for place in range(prompt.shape[1], whole.shape[1]):
            p = logits[place - 1].softmax(-1)
            product *= float(p[whole[0, place]])
            worst = max(worst, int((p > p[whole[0, place]]).sum()))
        probabilities.append(product)
        ranks.append(worst)
    assert found.places == 2 and found.rank == sum(sorted(ranks)) / 2
    assert found.probability == pytest.approx(sum(probabilities) / 2, rel=1e-5)


def test_unknown_methods_models_and_scopes_are_named(tmp_path):
    from tl_bilinear.recipes.planted.experiments import experiments
    from tl_bilinear.recipes.planted.plans import plans
    from tl_bilinear.recipes.planted.planting import Stories

    with pytest.raises(ValueError, match="no method 'magic'"):
        plans(["magic"])
    stories = Stories(("one",), ("two",), "")
    with pytest.raises(ValueError, match="no model 'gpt2'"):
        next(experiments(["gpt2"], ["names-0"], stories, tmp_path))
    with pytest.raises(ValueError, match="no scope 'all'"):
        next(experiments(["stories-2l"], ["all"], stories, tmp_path))


def scores(forget: float, unseen: float, retain: float, kl: float, nll: float = 3.0):
    """A model's scores, made up."""
    from tl_bilinear.unlearning.depth import Depth, LayerProbe
    from tl_bilinear.unlearning.measure import AskedScores, ModelScores
    from tl_bilinear.unlearning.metrics import AnswerScores, TextScores
    from tl_bilinear.unlearning.relearning import RelearningCurve

    def asked(accuracy: float) -> AskedScores:
        return AskedScores(AnswerScores(accuracy, 0.0, nll, 0.1, 0.1, 0.1, 90), ())

    curve = tuple(1.0 if step >= 12 else 0.0 for step in range(0, 97, 4))
    return ModelScores(
        forget=asked(forget),
        retain=asked(retain),
        text=TextScores(kl, 1.5, 100),
        forget_unseen=asked(unseen),
        retain_unseen=asked(retain),
        relearning=tuple(
            RelearningCurve(lesson, tuple(range(0, 97, 4)), curve) for lesson in ("facts", "half")
        ),
        depth=Depth((LayerProbe(0, 1, 0.1, 0.1, 0.1), LayerProbe(0, 2, 0.2, 0.1, 0.1)), (3.0,)),
    )


def cell(method: str, scope: str, found, ranks=(8, 8), seconds=20.0, error=""):
    from tl_bilinear.recipes.planted.cells import Cell

    return Cell("tiny", scope, method, (), (), found, ranks, False, seconds, (), None, error, "")


def test_claims_are_judged_by_the_worst_fold():
    from tl_bilinear.recipes.planted.claims import fold_claims, harder_claims, name_claims
    from tl_bilinear.recipes.planted.page import rows_of

    folds = ("names-0", "names-1", "names-2")
    good = [cell("fit_edit", f, scores(0.0, 0.04, 1.0, 0.01)) for f in folds]
    npo = [cell("npo", f, scores(0.0, 0.0, 1.0, 0.05)) for f in folds]
    verdicts = [claim.met for claim in fold_claims(rows_of("tiny", good + npo))]
    timed_elsewhere = None
    assert verdicts == [True] * 5 + [timed_elsewhere, True]
    worse = [*good[:2], cell("fit_edit", "names-2", scores(0.0, 0.06, 0.98, 0.03), (9, 1), 70.0)]
    cheap = [cell("npo", f, scores(0.04, 0.0, 1.0, 0.001)) for f in folds]
    verdicts = [claim.met for claim in fold_claims(rows_of("tiny", worse + cheap))]
    assert verdicts == [True, False, False, False, False, timed_elsewhere, False]
    # A baseline that does not forget as far is no measure.
    lazy = [cell("npo", f, scores(0.2, 0.0, 1.0, 0.001)) for f in folds]
    assert fold_claims(rows_of("tiny", good + lazy))[-1].met is None
    one = name_claims(rows_of("tiny", [cell("fit_edit", "one-name", scores(0.0, 0.0, 1.0, 0.001))]))
    assert [claim.met for claim in one] == [True] * 5
    gold = [cell("gold", f, scores(0.1, 0.1, 1.0, 0.09, nll=3.5)) for f in folds]
    repaired = [cell("fit_edit + repair", f, scores(0.0, 0.0, 1.0, 0.01)) for f in folds]
    judged = fold_claims(rows_of("tiny", worse + cheap + repaired))
    assert [claim.met for claim in judged[-2:]] == [False, False]
    assert judged[-1].measured == "0.0100; npo 0.0010" and judged[-1].sentence.endswith("repaired")
    judged = fold_claims(rows_of("tiny", worse + npo + repaired))
    assert [claim.met for claim in judged[-2:]] == [True, True]
    leaky = [cell("fit_edit + repair", f, scores(0.0, 0.06, 1.0, 0.01)) for f in folds]
    unseen = fold_claims(rows_of("tiny", good + leaky))[1:3]
    assert [claim.met for claim in unseen] == [True, False]
    seen_and_gold = fold_claims(rows_of("tiny", gold + good))[1]
    assert seen_and_gold.measured == "0.040, 0.040, 0.040; gold 0.100, 0.100, 0.100"
    harder = harder_claims(rows_of("tiny", gold + repaired))
    assert [claim.met for claim in harder] == [True] * 4
    far = [cell("fit_edit + repair", f, scores(0.0, 0.0, 1.0, 0.01, nll=4.3)) for f in folds]
    assert not harder_claims(rows_of("tiny", gold + far))[0].met
    assert fold_claims({}) == name_claims({}) == harder_claims({}) == []


def test_the_page_has_every_method_its_failures_and_its_claims(tmp_path):
    from tl_bilinear.recipes.planted.recall import Recall
    from tl_bilinear.recipes.unlearning_stories import write_page

    folds = ("names-0", "names-1", "names-2")
    cells = [
        *(cell("none", f, scores(1.0, 1.0, 1.0, 0.0), (0, 0), 0.0) for f in folds),
        *(cell("fit_edit", f, scores(0.0, 0.01 * k, 1.0, 0.01)) for k, f in enumerate(folds)),
        *(cell("units", f, None, (), 0.0, "no such basis here") for f in folds),
        dataclasses.replace(cell("fit_edit", "one-name", scores(0.0, 0.5, 1.0, 0.01)), took=120.0),
    ]
    page = tmp_path / "page.md"
    recall = Recall("tiny", "names-0", 1.0, 0.97, 0.5, 1.5, 1.6)
    write_page(cells, [recall], page, "a command", "some text", 60.0)
    written = page.read_text()
    row = next(line for line in written.splitlines() if line.startswith("| fit_edit "))
    assert "0.01 ± 0.02" in row and "| 12 |" in row and "| 8 |" in row
    assert "units failed: no such basis here" in written and "a command" in written
    assert "| tiny, 90 facts | 1.000 | 0.970 | 0.500 | 1.500 | 1.600 |" in written
    assert "**Not run yet:** stories-5l, stories-2l, stories-5l-swiglu, color, wug." in written
    assert "planting took 1 minutes and the tables 2, one process" in written
    assert "One name of 30" in written and "**not met**" in written
    for kind in ("methods", "relearning"):
        picture = tmp_path / f"page_tiny_{kind}.svg"
        assert picture.name in written and "<svg" in picture.read_text()[:400]


def test_fitted_modes_are_written_as_neurons(tiny):
    from tl_bilinear.recipes.planted.cells import changed
    from tl_bilinear.recipes.planted.fitted_modes import FittedModes
    from tl_bilinear.unlearning.methods import Problem

    model = tiny.open(tiny.planted)
    edited = copy.deepcopy(model)
    FittedModes(k=64).edit_(edited, Problem(tiny.forget, tiny.retain, tiny.edit_texts, 0, model))
    (rank,), elsewhere = changed(model, edited)
    assert 1 <= rank <= 64 and elsewhere
    tokens = model.to_tokens("Brindo's favorite color is")
    assert (edited(tokens) - model(tokens)).abs().max() > 1e-3
