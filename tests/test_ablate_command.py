"""`tl-bilinear ablate`: modes of a prompt or of a file, by hook or into a folder; bad input."""

from pathlib import Path
from typing import Any

import pytest
import torch

import tl_bilinear as tlb

ASK = ("--prompt", "Tom had a dog", "--target", ".")


@pytest.fixture(scope="module")
def model() -> Any:
    return tlb.load("stories-5l", check=False)


@pytest.fixture
def run(model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command, with a model that is loaded only once; edits are undone by a fresh state."""
    from typer.testing import CliRunner

    import tl_bilinear.checkpoints
    from tl_bilinear.cli import app

    monkeypatch.setattr(tl_bilinear.checkpoints, "load", lambda *names, **options: model)
    return lambda *words: CliRunner().invoke(app, ["ablate", *map(str, words)])


def test_modes_of_a_prompt_are_shown_saved_and_written(run: Any, model: Any, tmp_path: Path):
    width = tlb.get_host(model).d_mlp
    modes, folder, ledger = (tmp_path / name for name in ("modes", "edited", "ledger"))
    done = run(*ASK, "--top", 3, "--save-modes", modes)
    assert done.exit_code == 0, done.output
    found = tlb.load_modes(modes, model)
    attributed = tlb.attribute_modes(model, ASK[1], ASK[3])
    expected = [mode for mode, _ in attributed.top(3)]
    assert [mode.label for mode in found] == [mode.label for mode in expected]
    assert "--top 3" in found.found
    with tlb.ablate(model, expected):
        after = float(tlb.attribute_components(model, ASK[1], ASK[3]).target.sum())
    for number in (float(attributed.total), after):
        assert f"{number:+.4f}" in done.stdout
    tokens = model.to_tokens(ASK[1])
    with torch.no_grad():
        before = model(tokens)
        with tlb.ablate(model, found, -1.0):
            edited = model(tokens)
    done = run("--modes", modes, "--scale", -1, "--write", folder, "--ledger", ledger, *ASK)
    assert done.exit_code == 0, done.output
    assert "masking (neurons)" in done.stdout and f"{width} to " in done.stdout
    assert f"written: {folder}" in done.stdout
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), edited, rtol=0, atol=1e-3)
    tlb.undo_(model, tlb.Ledger.load(ledger))
    with torch.no_grad():
        assert torch.equal(model(tokens), before)
    assert (folder / "config.json").is_file()


@pytest.mark.one_major(3)
def test_what_is_written_is_undone_from_its_ledger(model: Any, tmp_path: Path):
    """Nothing is shared with the first command but the files."""
    from typer.testing import CliRunner

    from tl_bilinear.cli import app

    edited, ledger, restored = (tmp_path / name for name in ("edited", "ledger", "restored"))

    def run(*words: Any) -> Any:
        return CliRunner().invoke(app, [str(word) for word in words])

    done = run("ablate", *ASK, "--write", edited, "--how", "refit", "--ledger", ledger)
    assert done.exit_code == 0, done.output
    done = run("undo", edited, ledger, "--write", restored)
    assert done.exit_code == 0, done.output
    assert "refit" in done.stdout and f"written: {restored}" in done.stdout
    tokens = model.to_tokens(ASK[1])
    with torch.no_grad():
        expected = model(tokens)
        again, other = (tlb.load(str(folder), check=False)(tokens) for folder in (restored, edited))
    assert torch.equal(again, expected) and not torch.allclose(other, expected)
    for words, arguments in {
        "is not an empty folder": (edited, ledger, "--write", restored),
        "it is undone already": (restored, ledger, "--write", tmp_path / "new"),
        "cannot be read": (edited, tmp_path / "none", "--write", tmp_path / "new"),
    }.items():
        done = run("undo", *arguments)
        assert done.exit_code == 1 and words in done.stderr, done.output
    assert not (tmp_path / "new").exists()


def test_bad_input_is_one_line(run: Any, unchecked: None, tmp_path: Path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    cases = {
        "give --prompt and --target": (),
        "belong together": ("--prompt", "Tom"),
        "nothing to do": ("--modes", tmp_path / "modes"),
        "cannot be read": (*ASK, "--modes", tmp_path / "modes"),
        "--scale must be": (*ASK, "--scale", "half"),
        "--top must be": (*ASK, "--top", "0"),
        "needs `texts`": (*ASK, "--scale", "mean"),
        "is not an empty folder": (*ASK, "--write", full),
        "give both": (*ASK, "--ledger", tmp_path / "ledger"),
        "lies in the model's folder": (*ASK, "--write", full / "a", "--ledger", full / "a" / "b"),
        "--how must be": (*ASK, "--write", tmp_path / "new", "--how", "delete"),
    }
    for words, arguments in cases.items():
        done = run(*arguments)
        assert done.exit_code == 1, (words, done.output)
        # Progress may stand before it.
        (line,) = [line for line in done.stderr.splitlines() if "tl-bilinear: " in line]
        assert words in line, line
    assert not (tmp_path / "new").exists()
