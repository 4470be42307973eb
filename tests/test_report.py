"""The report: its numbers, its page and its command, on a small real vocabulary.

The model is the bundled SwiGLU model with its activation taken out: its predictions mean
nothing, and every number is a function of files that are in the repository.
"""

import html
import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from test_views import browse, network_references, scripts_of, without_scripts

ZOO = Path(__file__).parents[1] / "tl_bilinear" / "zoo"
HOSTS = ["transformer_bridge"]
if version("transformer-lens").startswith("3."):
    HOSTS.append("hooked_transformer")

TEXTS = (
    "Once upon a time there was a dog named Max. He lost his ball in the big red box.",
    "Lily and her mom went to the park.\nThey saw a bird & a <s> cat.",
    'The sun was hot. Tom said, "I want to swim" and ran to his dad.',
    "Ben was sad because he lost his toy. Sue gave him her own.",
)
HOSTILE = "A <s> b </script><script>alert(1)</script> <img src=x onerror=alert(1)> &amp; c\nd"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("models") / "story-bilinear"
    shutil.copytree(ZOO / "stories-5l-swiglu", target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"hidden_act": "linear"}))
    return target


@pytest.fixture(scope="module")
def measure(folder: Path) -> Callable[..., Any]:
    """Reports by host and question, each measured once."""
    import tl_bilinear as tlb
    from tl_bilinear.report import measure_report

    models: dict[str, Any] = {}
    reports: dict[tuple, Any] = {}

    def measured(host: Any = HOSTS[-1], **question: Any) -> Any:
        if host not in models:
            models[host] = tlb.load(folder, host=host)
        key = (host, *sorted(question.items()))
        if key not in reports:
            reports[key] = measure_report(
                models[host], TEXTS, texts_source="four texts of the tests", **question
            )
        return reports[key]

    return measured


@cache
def page_of(report: Any) -> str:
    from tl_bilinear.report import report_page

    return report_page(report)


def data_of(text: str) -> dict[str, Any]:
    return json.loads(scripts_of(text)[0])


def readable(text: str) -> str:
    """The page's words, without its markup."""
    bare = re.sub(r"<style>.*?</style>", "", without_scripts(text), flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", bare)).replace("\u2212", "-")


# ---- numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("host", HOSTS)
def test_everything_adds_up(measure: Callable[..., Any], host: str) -> None:
    report = measure(host)
    parts = report.components
    assert abs(float(parts.discrepancy.sum())) < 1e-4
    for layer in report.layers:
        assert layer.total == pytest.approx(layer.share, abs=1e-5)
        for mode in layer.modes:
            value = mode.mode.eigenvalue * mode.activation**2 / report.rho
            assert mode.contribution == pytest.approx(value, abs=1e-9)
            assert mode.prompt_activations[-1] == pytest.approx(mode.activation, abs=1e-6)
            assert layer.eigen.eigenvalues[mode.index] == pytest.approx(mode.mode.eigenvalue)
    assert report.ablation.before == pytest.approx(float(parts.target.sum()), abs=1e-6)
    assert report.ablation.direct == pytest.approx(-report.top_mode.contribution, abs=1e-6)
    assert len(report.ablation.controls) == 20


def test_the_strongest_layers_and_modes_are_shown(measure: Callable[..., Any]) -> None:
    report = measure()
    shares = report.components.mlps[:, 0, 0].abs()
    shown = [layer.layer for layer in report.layers]
    assert shown == shares.argsort(descending=True)[:2].tolist()
    for layer in report.layers:
        sizes = [abs(mode.contribution) for mode in layer.modes]
        assert sizes == sorted(sizes, reverse=True) and len(sizes) == 3
    sizes = [abs(mode.contribution) for layer in report.layers for mode in layer.modes]
    assert abs(report.top_mode.contribution) == max(sizes)


def numbers(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of the page's data by its path."""
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    else:
        return {name: value}
    return {k: v for key, item in pairs for k, v in numbers(item, f"{name}/{key}").items()}


def comparable(report: Any) -> dict[str, Any]:
    own = ("/host", "/versions", "/self_check")
    data = numbers(data_of(page_of(report)))
    return {name: value for name, value in data.items() if not name.startswith(own)}


def assert_same_numbers(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, float):
            assert value == pytest.approx(second[name], abs=1e-4), name
        else:
            assert value == second[name], name


@pytest.mark.skipif(len(HOSTS) == 1, reason="TransformerLens 4 has one host")
def test_both_hosts_give_the_same_numbers(measure: Callable[..., Any]) -> None:
    first, second = (comparable(measure(host)) for host in HOSTS)
    assert sum(isinstance(value, float) for value in first.values()) > 500
    assert_same_numbers(first, second)


@pytest.mark.parametrize("host", HOSTS)
def test_every_version_gives_these_numbers(measure: Callable[..., Any], host: str) -> None:
    """Measured once, on TransformerLens 3.9: the anchor between 3.9 and 4."""
    data = data_of(page_of(measure(host)))
    found = {
        "target": data["components"]["target"],
        "mlps": data["components"]["mlps"],
        "modes": [mode["name"] for layer in data["layers"] for mode in layer["modes"]],
        "contributions": [m["contribution"] for layer in data["layers"] for m in layer["modes"]],
        "after": data["ablation"]["after"],
        "controls": data["ablation"]["controls"][:3],
    }
    assert_same_numbers(numbers(found), numbers(EXPECTED))


EXPECTED: dict[str, Any] = {
    "target": -0.816593,
    "mlps": [-0.211016, -0.323951, 0.089443, 0.134104, -0.062795],
    "modes": ["L1.9", "L1.21", "L1.6", "L0.0", "L0.1", "L0.2"],
    "contributions": [-0.279094, -0.169938, -0.121421, -0.543353, 0.415658, -0.205821],
    "after": -0.440008,
    "controls": [-0.405383, -0.626577, -0.747782],
}


# ---- the question ------------------------------------------------------------------------


def test_a_target_of_several_tokens_is_read_where_it_is_largest(
    measure: Callable[..., Any],
) -> None:
    report = measure(prompt="The boy lost", target=" his bike", layer=1)
    values = report.components.target[0]
    assert len(report.components.sites) == 4
    assert report.site == int(values.abs().argmax())
    assert report.site_tokens[: len(report.tokens)] == report.tokens
    assert len(report.site_tokens) == len(report.tokens) + report.site
    assert report.layers[0].total == pytest.approx(report.layers[0].share, abs=1e-5)
    words = readable(page_of(report))
    assert "sum over the tokens" in words and "whose value is largest" in words


def test_a_difference_after_a_longer_text(measure: Callable[..., Any]) -> None:
    report = measure(prompt="The boy lost", target=" him", against=" his bike", layer=0)
    assert len(report.components.sites) > 1
    mode = report.layers[0].modes[0]
    assert mode.prompt_activations[-1] == pytest.approx(mode.activation, abs=1e-6)


def test_without_a_target_the_two_most_likely_tokens_are_compared(
    measure: Callable[..., Any],
) -> None:
    report = measure(prompt="The boy and the", layer=0)
    first, second = report.predictions[:2]
    total = float(report.components.target.sum())
    assert total == pytest.approx(first.logit - second.logit, abs=1e-4)
    assert "two most likely next tokens" in readable(page_of(report))


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"layer": 5}, r"layer 5 is out of range: this model has 5 layers \(0-4\)"),
        ({"layer": -1}, "out of range"),
        ({"prompt": " "}, "prompt is empty"),
        ({"prompt": "Tim was", "target": ""}, "empty"),
        ({"against": " her"}, "needs a `target`"),
        ({"prompt": "A lit", "target": "tle"}, "merges"),
        ({"prompt": "a b c " * 400, "target": " d"}, "context"),
        ({"prompt": "a b c " * 400}, "context"),
    ],
)
def test_bad_questions(measure: Callable[..., Any], question: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(**question)


# ---- the page ----------------------------------------------------------------------------


def test_the_page_says_what_a_reader_needs(measure: Callable[..., Any]) -> None:
    report = measure()
    text = page_of(report)
    words = readable(text)
    for part in (
        "1. The model and its self-check",
        "2. The prompt and the model's predictions",
        "3. What each head and each layer's MLP adds",
        "4. The strongest MLPs, mode by mode",
        "5. What ablating the top mode does",
        "6. Where all this comes from",
        "Interaction matrix Q(u)",
        "Direct effect",
        "matched random mode",
        "final norm's denominator",
        "gauge none",
        "four texts of the tests",
        report.components.provenance.fingerprint,
        f"{float(report.components.total.sum()):.4f}",
        f"{report.ablation.change:+.4f}",
        f"{report.ablation.controls_as_large} of 20",
    ):
        assert part in " ".join(words.split()), part
    for layer in report.layers:
        assert f"{layer.total:+.4f}" in words
    assert text.count("CircuitsVis.render(") == 1
    assert "version" not in data_of(text) and data_of(text)["format"] == 1


def test_the_page_is_one_small_file_that_fetches_nothing(measure: Callable[..., Any]) -> None:
    text = page_of(measure())
    assert len(text.encode()) <= 4_000_000
    assert network_references(text) == []
    assert len(scripts_of(text)) == 3


@pytest.mark.one_major(3)
def test_hostile_text_shows_as_text(measure: Callable[..., Any]) -> None:
    text = page_of(measure(prompt=HOSTILE, target="<s>x&</script>", layer=0))
    assert len(scripts_of(text)) == 3 and network_references(text) == []
    assert data_of(text)["prompt"] == HOSTILE
    assert "alert(1)" not in scripts_of(text)[1]
    words = readable(text)
    assert HOSTILE.replace("\n", "↵") in words
    assert "<s>x&</script>" in words


@pytest.mark.one_major(3)
def test_the_page_in_a_browser(measure: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    report = measure(prompt=HOSTILE, target="<s>x&</script>", layer=0)
    path.write_text(page_of(report), encoding="utf-8")
    dom, complaints = browse(path, tmp_path / "profile")
    assert complaints == []
    drawn = sum(1 + len(mode.examples) for layer in report.layers for mode in layer.modes)
    assert without_scripts(dom).count('class="colored-tokens"') == drawn


@pytest.mark.one_major(3)
@pytest.mark.parametrize("width", [600, 1200])
def test_the_page_is_never_wider_than_the_window(
    measure: Callable[..., Any], tmp_path: Path, width: int
) -> None:
    # The policy keeps even our own measuring script out, so it is taken off here.
    text = re.sub(r"<meta http-equiv[^>]*>", "", page_of(measure()))
    size = "document.documentElement.scrollWidth + ' of ' + innerWidth"
    ask = f"<script>setTimeout(() => {{ document.title = 'wide ' + {size} }}, 3000)</script>"
    path = tmp_path / "page.html"
    path.write_text(text.replace("</body>", f"{ask}</body>"), encoding="utf-8")
    dom, _ = browse(path, tmp_path / "profile", width)
    found = re.search(r"<title>wide (\d+) of (\d+)</title>", dom)
    assert found, "the measuring script did not run"
    assert int(found[1]) <= int(found[2]) == width


# ---- the command -------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    from typer.testing import CliRunner

    from tl_bilinear.cli import app
    from tl_bilinear.report import stories

    monkeypatch.setattr(stories, "story_beginnings", lambda: TEXTS)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("host", HOSTS)
def test_the_command_writes_the_page(
    run: Callable[..., Any], folder: Path, tmp_path: Path, host: str
) -> None:
    path = tmp_path / "page.html"
    path.write_text("an older page")
    done = run("report", "--model", folder, "-o", path, "--host", host, "--layer", 2)
    assert done.exit_code == 0, done.output
    data = data_of(path.read_text(encoding="utf-8"))
    assert [layer["layer"] for layer in data["layers"]] == [2]
    assert data["host"] == {"transformer_bridge": "TransformerBridge"}.get(
        host, "HookedTransformer"
    )
    assert "sum of all components" in done.stdout and str(path) in done.stdout
    assert f"{data['components']['target']:+.4f}" in done.stdout
    assert "checking the model" in done.stderr and "checking the model" not in done.stdout
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no-such-model"], "'no-such-model' is neither a bundled model"),
        (["--layer", "9"], "layer 9 is out of range"),
        (["--prompt", "A lit", "--target", "tle"], "merges with the end of the prompt"),
        (["--against", " her"], "`against` needs a `target`"),
        (["-o", "no/such/folder/page.html"], "does not exist"),
        (["-o", "."], "is a folder"),
        (["-o", "/dev/null"], "is not a plain file"),
        (["--model", str(ZOO / "stories-5l-swiglu")], "SiLU activation"),
    ],
)
def test_bad_input_is_one_line_and_no_file(
    run: Callable[..., Any],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("report", "--model", folder, *arguments)
    assert done.exit_code == 1 and done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("tl-bilinear: ")]
    assert message in line and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.one_major(3)
def test_an_unfinished_page_is_not_left_behind(
    measure: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tl_bilinear.report import write, write_report

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    path = tmp_path / "page.html"
    path.write_text("an older page")
    monkeypatch.setattr(write.os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_report(measure(), path)
    assert path.read_text() == "an older page"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_extra_is_one_line(
    run: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tl_bilinear.views import extra

    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    done = run("report", "--model", folder)
    assert done.exit_code == 1 and "pip install 'tl_bilinear[views]'" in done.stderr


def test_models_are_listed(run: Callable[..., Any]) -> None:
    from tl_bilinear.checkpoints import bundled_models

    done = run("models")
    assert done.exit_code == 0 and bundled_models()
    for name in bundled_models():
        assert name in done.stdout
    assert "gated (silu)" in done.stdout
