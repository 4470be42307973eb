"""Files and folders appear whole: an error or a kill midway leaves what was there."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gated import tiny_llama

from tl_bilinear.optimisation import files
from tl_bilinear.optimisation.files import replace_file, whole_folder

pytestmark = pytest.mark.one_major(4)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text(errors="replace")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder with two files, of which a new version would replace one."""
    folder = tmp_path / "parent" / "target"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("old")
    (folder / "kept").write_text("old")
    return folder


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "training.pt"
    replace_file(path, b"old")

    def crash(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        replace_file(path, b"new, and longer")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_new_files_replace_those_of_their_names(old: Path):
    with whole_folder(old) as temporary:
        (temporary / "README.md").write_text("new")
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file").write_text("new")
        assert contents(old) == {"README.md": "old", "kept": "old"}
    assert contents(old) == {"README.md": "new", "kept": "old", "sub/file": "new"}
    assert list(old.parent.iterdir()) == [old]


@pytest.mark.parametrize("exists", [False, True])
def test_a_target_without_files_appears_whole(exists: bool, tmp_path: Path):
    target = tmp_path / "parent" / "target"
    if exists:
        target.mkdir(parents=True)
    with whole_folder(target) as temporary:
        (temporary / "a").write_text("new")
        assert not target.exists() or not contents(target)
    assert contents(target) == {"a": "new"} and list(target.parent.iterdir()) == [target]


def test_an_error_midway_leaves_the_target(old: Path):
    with pytest.raises(KeyboardInterrupt):
        with whole_folder(old) as temporary:
            (temporary / "README.md").write_text("half")
            raise KeyboardInterrupt
    assert contents(old.parent) == {"target/README.md": "old", "target/kept": "old"}
    new = old.with_name("new")
    with pytest.raises(KeyboardInterrupt):
        with whole_folder(new) as temporary:
            (temporary / "README.md").write_text("half")
            raise KeyboardInterrupt
    assert not new.exists()


def test_a_kill_midway_leaves_the_target_and_the_next_write_clears_up(old: Path):
    code = (
        "import os, sys\n"
        "from tl_bilinear.optimisation.files import whole_folder\n"
        "with whole_folder(sys.argv[1]) as temporary:\n"
        "    (temporary / 'README.md').write_text('half')\n"
        "    (temporary / 'other').write_text('half')\n"
        "    os._exit(9)\n"
    )
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code, str(old)], env=os.environ | {"PYTHONPATH": root}
    )
    assert done.returncode == 9
    assert contents(old) == {"README.md": "old", "kept": "old"}
    with whole_folder(old) as temporary:
        (temporary / "README.md").write_text("new")
    assert contents(old.parent) == {"target/README.md": "new", "target/kept": "old"}


class NoTokenizer:
    def save_pretrained(self, folder: Path) -> None:
        assert (folder / "config.json").exists()  # the model is written by now
        raise OSError("disk full")


def write_conversion(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tl_bilinear.conversion import convert

    convert._write(tiny_llama("linear"), NoTokenizer(), "card", target, target)


def write_student(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tl_bilinear.conversion.stories import save_student

    save_student(tiny_llama("linear"), "card", target / "no teacher here", target)


def write_dictionary(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tl_bilinear.checkpoints.dictionaries import saelens
    from tl_bilinear.recipes import story_dictionaries

    class Half:
        def to(self, dtype: torch.dtype) -> Any:
            return self

    def fail(dictionary: Any, model_name: str) -> Any:
        raise OSError("disk full")

    monkeypatch.setattr(saelens, "contents", fail)
    monkeypatch.setattr(story_dictionaries, "FOLDER", ".")
    story_dictionaries._store(Half(), target.name, target, target.parent)


@pytest.mark.parametrize("write", [write_conversion, write_student, write_dictionary])
def test_what_writes_models_leaves_the_old_one(write, old: Path, monkeypatch, unchecked):
    with pytest.raises(OSError):
        write(old, monkeypatch)
    assert contents(old.parent) == {"target/README.md": "old", "target/kept": "old"}


def test_a_finished_folder_is_not_half_there(tmp_path: Path, monkeypatch):
    from tl_bilinear.conversion import anneal_, callback, finish_folder

    model = tiny_llama()
    anneal_(model, 0.0)
    setattr(model.config, callback.BETA_KEY, 0.0)
    model.save_pretrained(tmp_path / "unfolded")
    (tmp_path / "unfolded" / "tokenizer_config.json").write_text("{}")

    class Tokenizer:
        @classmethod
        def from_pretrained(cls, folder: Path, **options: Any) -> NoTokenizer:
            return NoTokenizer()

    monkeypatch.setattr(callback, "AutoTokenizer", Tokenizer)
    with pytest.raises(OSError, match="disk full"):
        finish_folder(tmp_path / "unfolded", tmp_path / "bilinear")
    assert [path.name for path in tmp_path.iterdir()] == ["unfolded"]


def test_samples_and_states_are_written_through_replace_file(tmp_path: Path, monkeypatch):
    from tl_bilinear.conversion import SampledStories, sampling
    from tl_bilinear.optimisation import TrainingRun

    batch = SampledStories(torch.zeros(1, 2).long(), torch.tensor([2]), torch.tensor([True]))
    layer = torch.nn.Linear(2, 2)
    run = TrainingRun(layer, torch.optim.Adam(layer.parameters()), tmp_path, {})
    writes = {
        "batch": lambda path: sampling._write_batch(batch, path / "batch"),
        "training.pt": lambda path: run.save(),
    }
    for name, write in writes.items():
        write(tmp_path)
        first = (tmp_path / name).read_bytes()

        def crash(descriptor):
            raise OSError(28, "disk full")

        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", crash)
            with pytest.raises(OSError, match="disk full"):
                write(tmp_path)
        assert (tmp_path / name).read_bytes() == first
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted([*writes, "metrics.jsonl"])
