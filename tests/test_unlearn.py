"""The whole procedure: its report, its files, its bad inputs, and the model as it was."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import hosts
from taught import facts, taught, texts
from typer.testing import CliRunner

import tl_bilinear as tlb
from tl_bilinear.unlearning import RelearningConfig, UnlearningReport, accuracy, save_questions
from tl_bilinear.unlearning.dose import DosePoint, dose_curve, pareto
from tl_bilinear.unlearning.methods import METHODS
from tl_bilinear.unlearning.methods.hinge import Hinge
from tl_bilinear.unlearning.methods.unedited import Unedited
from tl_bilinear.unlearning.over_forgetting import over_forgetting, over_forgetting_of
from tl_bilinear.unlearning.report_tables import tables

pytestmark = pytest.mark.one_major(4)  # both majors' hosts: test_unlearning_cases

FORGET, RETAIN = facts()
BRIEF = RelearningConfig(steps=8, every=4, learning_rate=2e-2)
SHORTEST = RelearningConfig(steps=1, every=1)
QUICK: dict[str, Any] = {
    "texts": texts(8),
    "method": "hinge",
    "baselines": ("random_directions",),
    "seeds": 2,
    "trials": 1,
    "steps": 24,
    "relearning": BRIEF,
}


@pytest.fixture(scope="module", autouse=True)
def quick_hinge():
    """A rate that suits the taught model, which is smaller than what the candidates are for."""
    with pytest.MonkeyPatch.context() as patch:
        chosen = [Hinge(learning_rate=1e-2, depth=2.0)]
        patch.setattr(Hinge, "candidates", classmethod(lambda cls, host: chosen))
        yield


@pytest.fixture(scope="module")
def model():
    return taught(hosts()[0])


@pytest.fixture(scope="module")
def gold():
    return taught(hosts()[0], without_forget=True)


@pytest.fixture(scope="module")
def report(model, gold):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = tlb.unlearn(model, FORGET, RETAIN, gold=gold, near=NEAR, far=texts()[8:10], **QUICK)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    return found


NEAR = [tlb.Question("w15 w16 w17", " w18"), tlb.Question("w15 w16 w18", " w19")]


def test_the_copy_forgets_and_the_model_does_not(model, report):
    assert accuracy(model, FORGET) == report.before.forget.answers.accuracy == 1.0
    after = report.result.scores[0]
    assert accuracy(report.model, FORGET) == after.forget.answers.accuracy <= 0.25
    assert accuracy(report.model, RETAIN) == after.retain.answers.accuracy >= 0.75
    control = report.baselines[0].scores[0].forget.answers.accuracy
    assert control >= after.forget.answers.accuracy + 0.5
    assert (report.result.kind, report.baselines[0].method) == ("removal", "random_directions")
    assert report.before.text.kl == 0 < after.text.kl


def test_what_is_reported_is_what_is_measured(model, gold, report):
    assert len(report.result.scores) == len(report.result.seconds) == 2
    assert report.result.passes.forward == 24 * 4 and report.result.passes.backward == 24 * 3
    assert len(report.result.trials) == len(report.baselines[0].trials) == 1
    ratios, theirs = report.result.scores[0].forget.truth_ratios, report.gold.forget.truth_ratios
    assert len(ratios) == len(theirs) == 8  # four questions in two wordings
    from tl_bilinear.unlearning.metrics import kolmogorov_smirnov

    p = kolmogorov_smirnov(torch.tensor(ratios), torch.tensor(theirs))[1]
    assert report.result.scores[0].forget_quality == pytest.approx(p)
    assert report.before.forget_quality is not None and report.gold.forget_quality is None
    assert report.before.near.asked.answers.n_rows == 2 and report.before.near.text is None
    assert report.before.far.asked is None and report.before.far.text.kl == 0
    interval = report.result.interval(lambda s: s.text.kl)
    values = [s.text.kl for s in report.result.scores]
    assert interval.mean == pytest.approx(sum(values) / 2)
    # Student's quantile for one degree of freedom, of two values.
    assert interval.half == pytest.approx(12.706 * abs(values[0] - values[1]) / 2, rel=1e-3)


def test_what_a_method_says_of_its_edits_is_in_the_report(report):
    said = ("stopped short: 2 < 3", "every demand is met", "every demand is met")
    told = replace(report, result=replace(report.result, said=said))
    assert report.result.said == ()  # the hinge says nothing
    assert UnlearningReport.from_json(told.to_json()) == replace(told, model=None)
    written = told.to_markdown()
    assert written.count("Of the edit: every demand is met.") == 1 == written.count("stopped short")
    assert "2 &lt; 3" in told.to_html() and "2 < 3" not in told.to_html()


def test_relearning_brings_the_facts_back(report):
    lessons = {c.lesson: c for c in report.result.scores[0].relearning}
    assert list(lessons) == ["facts", "half", "text"]
    assert lessons["facts"].steps == (0, 4, 8)
    assert lessons["facts"].accuracy[0] <= 0.25 and lessons["facts"].accuracy[-1] >= 0.75
    assert report.relearn_steps(report.before, "facts") == 0
    assert lessons["facts"].steps_to(2.0) is None
    assert [r.bits for r in report.before.rounding] == [8, 4]
    assert report.before.rounding[0].forget_accuracy == 1.0


def test_layers_are_read(model, report):
    depth = report.before.depth
    assert len(depth.lens_rank) == 2 and len(depth.probes) == 4
    assert depth.lens_rank[-1] == 0  # the model says the answer: nothing stands above it
    assert report.result.scores[0].depth.lens_rank[-1] > 0


def test_the_lens_ranks_by_the_models_own_head(model):
    from tl_bilinear.unlearning import answer_rows, site_logits
    from tl_bilinear.unlearning.depth import measure_depth

    rows = answer_rows(model, [replace(q, answer=" w30") for q in FORGET])
    with torch.no_grad():
        logits = site_logits(model, rows)
    ranks = (logits > logits.gather(1, rows.label[:, None])).sum(1).double()
    found = measure_depth(model, [replace(q, answer=" w30") for q in FORGET], RETAIN)
    assert found.lens_rank[-1] == float(ranks.median()) and found.probes == ()


def test_dose_goes_from_the_one_model_to_the_other(model, report):
    points = {p.scale: p for p in report.dose}
    assert points[0.0].forget_accuracy == 1.0 and points[0.0].kl == 0
    after = report.result.scores[0]
    assert points[1.0].forget_accuracy == after.forget.answers.accuracy
    assert points[1.0].kl == after.text.kl and points[1.0].forget_nll == after.forget.answers.nll


def test_the_front_holds_what_nothing_beats():
    def point(scale: float, forget: float, retain: float) -> DosePoint:
        return DosePoint(scale, forget, 0.0, retain, 0.0)

    points = pareto([point(0, 1, 1), point(1, 0.5, 0.9), point(2, 0.5, 0.8), point(3, 0.0, 0.5)])
    assert [p.on_front for p in points] == [True, True, False, True]


def test_a_report_survives_its_file(report, tmp_path):
    again = UnlearningReport.from_json(report.to_json())
    assert again == report and again.model is None and report.model is not None
    assert UnlearningReport.from_json(again.to_json()).to_markdown() == report.to_markdown()
    path = report.save_json(tmp_path / "report.json")
    assert UnlearningReport.from_json(path.read_text()) == report
    for text, words in (
        ("{", "no JSON"),
        ("[]", "must be an object"),
        ('{"format": 9}', "format 9"),
        (report.to_json().replace('"n_forget": 4', '"n_forget": "x"'), "n_forget must be int"),
    ):
        with pytest.raises(ValueError, match=words):
            UnlearningReport.from_json(text)


def test_tables_say_what_is_there_and_what_is_not(report):
    found = {table.title: table for table in tables(report)}
    assert len(found) == 10
    for table in found.values():
        assert {len(row) for row in table.rows} == {len(table.header)}
    missing = {each.what for each in report.missing}
    assert missing == {"membership inference, PrivLeak, ROUGE, model utility"}
    text = report.to_markdown()
    for words in ("removal", "random_directions", "unseen wordings", "± ", "4 bits"):
        assert words in text


def test_the_page_needs_no_network(report, tmp_path):
    path = report.save_html(tmp_path / "report.html")
    text = path.read_text(encoding="utf-8")
    assert text.count("<svg") == 5 and [p.name for p in tmp_path.iterdir()] == ["report.html"]
    outside = re.findall(r"""(?:src|href|xlink:href)\s*=\s*["'](?!#)[^"']*|url\((?!#)[^)]*""", text)
    assert outside == [] and "@import" not in text and "default-src 'none'" in text
    data = re.search(r'id="report-data">(.*?)</script>', text, re.DOTALL)
    assert data and UnlearningReport.from_json(data[1]) == report


def test_over_forgetting_is_flagged(report):
    gold, ours = report.gold, report.result.scores[0]
    deeper = replace(
        ours,
        forget=replace(
            ours.forget,
            answers=replace(ours.forget.answers, nll=gold.forget.answers.nll * 1.21),
            truth_ratios=(2.0,) * 8,
        ),
    )
    assert any("NLL" in each for each in over_forgetting(deeper, gold))
    assert any("wrong ones" in each for each in over_forgetting(deeper, None))
    assert over_forgetting(gold, gold) == ()
    signs = over_forgetting(deeper, gold)
    assert over_forgetting_of([deeper, deeper], gold) == signs
    assert over_forgetting_of([gold, deeper, gold], gold) == tuple(f"seed 1: {s}" for s in signs)
    assert over_forgetting(report.before, gold) == over_forgetting(report.before, None) == ()


def test_without_gold_and_unseen_wordings_it_says_so(model):
    plain = [replace(q, unseen=(), wrong=(), subject="") for q in FORGET[:1]]
    found = tlb.unlearn(
        model,
        plain,
        [replace(RETAIN[0], answer=" w5")],
        **{**QUICK, "method": "none", "seeds": 1, "baselines": (), "relearning": SHORTEST},
    )
    why = {each.what: each.why for each in found.missing}
    assert "no gold model" in why["forget quality"] and "`unseen`" in str(why)
    assert {"truth ratio", "near retain", "far retain", "probes"} <= set(why)
    assert "relearning of one half, and its leak" in why
    assert found.result.kind == "none" and found.result.scores[0].text.kl == 0
    assert "-" in found.to_markdown() and found.to_html().count("<svg") >= 3
    assert found.result.interval(lambda s: s.forget_quality) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"forget": []}, "`forget` is empty"),
        ({"retain": []}, "`retain` is empty"),
        ({"retain": FORGET[:1] + RETAIN}, "`forget` and `retain` overlap: 3 wordings"),
        ({"near": FORGET[1:2]}, "`forget` and `near` overlap"),
        ({"texts": ["w1 w2"]}, "at least 4"),
        ({"method": "prayer"}, "unknown method 'prayer'"),
        ({"baselines": ("gold",)}, "give it as gold="),
        ({"seeds": 0}, "`seeds` is 0"),
        ({"trials": 9}, "`trials` is 9"),
        (
            {"forget": [replace(q, answer=" w35", wrong=()) for q in FORGET]},
            "knows 0% of the forget set's wordings",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_runs(model, change, words):
    arguments: dict[str, Any] = {"forget": FORGET, "retain": RETAIN, **QUICK, **change}
    with pytest.raises(ValueError, match=re.escape(words)):
        tlb.unlearn(model, arguments.pop("forget"), arguments.pop("retain"), **arguments)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("broken")])
def test_an_interrupt_leaves_the_model_as_it_was(model, monkeypatch, error):
    def spoil(self: Any, model: Any, problem: Any) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0)
        raise error

    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    monkeypatch.setattr(Unedited, "edit_", spoil)
    arguments = {**QUICK, "method": "none", "baselines": (), "relearning": SHORTEST}
    with pytest.raises((KeyboardInterrupt, ValueError)):
        tlb.unlearn(model, FORGET, RETAIN, **arguments)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not model.training and all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for n, m in model.named_modules() if n.endswith("blocks.0"))


def test_an_edit_that_changes_shapes_has_no_dose(model):
    import copy

    grown = copy.deepcopy(model)
    name, parameter = next((n, p) for n, p in grown.named_parameters() if p.ndim == 2)
    parameter.data = torch.cat([parameter.data, parameter.data[:1]])
    with pytest.raises(ValueError, match=f"changed the shape of {re.escape(name)}"):
        dose_curve(model, grown, FORGET, RETAIN, texts(4))


def test_questions_of_a_file(tmp_path, unchecked):
    path = tmp_path / "questions.json"
    save_questions(path, FORGET)
    assert tlb.load_questions(path) == tuple(FORGET)
    for content, words in (
        ("{", "is no JSON"),
        ("[]", "holds no questions"),
        ("[3]", "question 0 is 3"),
        ('[{"prompt": "a"}]', r"lacks \['answer'\]"),
        ('[{"prompt": "a", "answer": "b", "anser": ""}]', r"unknown fields \['anser'\]"),
        ('[{"prompt": "a", "answer": ""}]', "question 0: .* empty answer"),
        ('[{"prompt": "a", "answer": "b", "wrong": "c"}]', "question 0: .*`wrong`"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=words):
            tlb.load_questions(path)


@pytest.fixture
def command(model, monkeypatch, tmp_path):
    """`tl-bilinear unlearn` on the taught model instead of a loaded one."""
    import tl_bilinear.checkpoints as checkpoints
    from tl_bilinear.cli import app

    monkeypatch.setattr(checkpoints, "load", lambda *a, **k: model)
    save_questions(tmp_path / "forget.json", FORGET)
    save_questions(tmp_path / "retain.json", RETAIN)
    (tmp_path / "text.txt").write_text("\n\n".join(texts(8)))

    def run(*arguments: str) -> Any:
        files = [str(tmp_path / name) for name in ("forget.json", "retain.json")]
        words = ["unlearn", "taught", *files, "--text", str(tmp_path / "text.txt"), *arguments]
        words += ["--relearn-steps", "1"]
        return CliRunner().invoke(app, words)

    return run


def test_the_command_writes_report_and_model(command, monkeypatch, tmp_path):
    import tl_bilinear.checkpoints as checkpoints

    saved: list[Any] = []

    def save_pretrained(model: Any, folder: Path) -> Path:
        saved.append(model)
        return folder

    monkeypatch.setattr(checkpoints, "save_pretrained", save_pretrained)
    out = tmp_path / "report.json"
    done = command(
        "--method", "difference_of_means", "--baselines", "none", "--seeds", "1", "-o", str(out),
        "--save", str(tmp_path / "edited"),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    report = UnlearningReport.from_json(out.read_text())
    assert report.result.method == "difference_of_means"
    assert len(saved) == 1 and accuracy(saved[0], FORGET) == (
        report.result.scores[0].forget.answers.accuracy
    )
    for words in ("difference_of_means", "not computed: forget quality", "edited model:"):
        assert words in done.output


def test_the_command_complains_in_one_line(command, monkeypatch, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for arguments, words in (
        (["-o", str(tmp_path / "report.pdf")], "give one of the suffixes"),
        (["-o", str(tmp_path / "none" / "report.md")], "does not exist"),
        (["--save", str(tmp_path / "full")], "not empty"),
        (["--method", "prayer"], "unknown method 'prayer'"),
        (["--near", str(tmp_path / "forget.json")], "overlap"),
    ):
        done = command(*arguments)
        assert done.exit_code == 1 and words in done.output, done.output

    def interrupt(self: Any, model: Any, problem: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(METHODS["leace"], "edit_", interrupt)
    out = tmp_path / "report.json"
    done = command("--method", "leace", "-o", str(out), "--seeds", "1")
    assert done.exit_code == 1 and "interrupted: nothing was written" in done.output
    assert not out.exists()
