"""`tl-bilinear convert`: a gated folder into a bilinear one with its card, or one clear refusal."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gated import tiny_llama
from models import save, word_tokenizer
from typer.testing import CliRunner

import tl_bilinear as tlb
from tl_bilinear.cli import app

STORIES = "\n<|endoftext|>\n".join(
    " ".join(("one two three" if i % 2 else "three one").split() * (1 + i % 4)) for i in range(60)
)
SMALL = ("--steps", "6", "--batch-size", "4", "--window", "8")


@pytest.fixture
def source(tmp_path) -> Path:
    folder = save(tiny_llama(), tmp_path / "source")
    (folder / "LICENSE").write_text("MIT")
    (tmp_path / "text.txt").write_text(STORIES)
    return word_tokenizer(folder)


def run(source: Path, target: Path, *options: str) -> Any:
    text = str(source.parent / "text.txt")
    return CliRunner().invoke(
        app, ["convert", str(source), "--text", text, "-o", str(target), *SMALL, *options]
    )


def test_a_folder_with_its_card_that_loads(source, tmp_path):
    result = run(source, tmp_path / "out", "--schedule", "logistic", "--learned-scale")
    assert result.exit_code == 0, result.output
    assert "before" in result.stdout and "after" in result.stdout
    model = tlb.load(tmp_path / "out")
    tlb.self_check(model)
    assert (tmp_path / "out" / "LICENSE").read_text() == "MIT"
    card = (tmp_path / "out" / "README.md").read_text()
    for words in ("before", "beta = 0, untrained", "after", "logistic", "learned scale", "silu"):
        assert words in card, words
    assert "every 20th document of text.txt" in card and "57 documents" in card
    assert model.tokenizer is not None and len(model.to_tokens("one two")[0]) == 3

    again = run(source, tmp_path / "out")
    assert again.exit_code == 1 and "is not an empty folder: give a new one" in again.output


def test_losses_are_measured_on_the_held_out_text(source, tmp_path):
    from tl_bilinear.conversion.evaluation import evaluate, load_folder, read_stories

    held_out = tmp_path / "held.txt"
    held_out.write_text("one two three one\n<|endoftext|>\ntwo two")
    result = run(source, tmp_path / "out", "--held-out", str(held_out), "--kl-weight", "0")
    assert result.exit_code == 1 and "are both 0" in result.output
    options = ("--held-out", str(held_out), "--kl-weight", "0", "--next-token-weight", "1")
    assert run(source, tmp_path / "out", *options).exit_code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    for folder, name in ((source, "before"), (tmp_path / "out", "after")):
        model, tokenizer = load_folder(folder)
        loss = evaluate(model, tokenizer, read_stories(held_out), max_tokens=32)
        assert f"| held.txt | {name} | {loss.nats_per_token:.4f} |" in card


def test_a_full_disk_leaves_the_run_to_be_resumed(source, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    from tl_bilinear.optimisation import files

    assert run(source, tmp_path / "whole").exit_code == 0
    original = files.os.fsync

    def full(descriptor: int) -> None:
        if (tmp_path / "out.run" / "training.pt.tmp").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        failed = run(source, tmp_path / "out")
    assert failed.exit_code == 1 and "No space left on device" in failed.output
    assert not (tmp_path / "out").exists()
    assert run(source, tmp_path / "out").exit_code == 0
    whole, resumed = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "out"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_what_cannot_be_converted_is_refused_before_anything_is_written(source, tmp_path):
    def message(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["convert", *arguments])
        assert result.exit_code == 1, result.output
        return result.output

    text, out = str(tmp_path / "text.txt"), str(tmp_path / "out")
    assert "bilinear already" in message("stories-5l", "--text", text, "-o", out)
    assert "is not a model folder" in message(str(tmp_path), "--text", text, "-o", out)
    assert "there is no text file" in message(str(source), "--text", out, "-o", out)
    (tmp_path / "short.txt").write_text("one two")
    short = message(str(source), "--text", str(tmp_path / "short.txt"), "-o", out)
    assert "has 1 documents" in short and "give at least 20" in short
    unknown = message(str(source), "--text", text, "-o", out, *SMALL, "--schedule", "step")
    assert "`schedule` is 'step': expected one of linear" in unknown
    wide = message(str(source), "--text", text, "-o", out, "--window", "64")
    assert "the model's context is 32" in wide
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.run").exists()


def test_losses_before_and_after_are_numbers_of_the_run(source, tmp_path):
    assert run(source, tmp_path / "out").exit_code == 0
    lines = (tmp_path / "out.run" / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert len(entries) == 6 and all("kl" in entry for entry in entries)
    assert any("every 20th document of text.txt" in entry for entry in entries)
