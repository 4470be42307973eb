"""Modes as files: bit for bit, of one model, whole or not at all."""

import json
from pathlib import Path

import pytest
import torch
from models import hosts, native
from safetensors.torch import save_file

import tl_bilinear as tlb
from tl_bilinear.checkpoints.error import CheckpointError


def some_modes(dtype: torch.dtype = torch.float64) -> list[tlb.Mode]:
    values = torch.randn(4, 16, dtype=torch.float64).to(dtype)
    return [
        tlb.Mode(1, values[0], 1 / 3, values[1], "first"),
        tlb.Mode(0, values[2], -1e-17, values[3], "λ second"),
    ]


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_modes_come_back_bit_for_bit(host, dtype, tmp_path):
    model, modes = native("RMS", host), some_modes(dtype)
    path = tlb.save_modes(tmp_path / "modes.safetensors", modes, model, found="by hand")
    found = tlb.load_modes(path, model)
    assert [path.name for path in tmp_path.iterdir()] == ["modes.safetensors"]
    assert (len(found), found.found) == (2, "by hand")
    assert found.fingerprint == found.provenance.fingerprint
    for one, other in zip(modes, found, strict=True):
        assert (one.layer, one.eigenvalue, one.label) == (
            other.layer,
            other.eigenvalue,
            other.label,
        )
        assert torch.equal(one.direction, other.direction)
        assert torch.equal(one.eigenvector, other.eigenvector)
    again = tlb.save_modes(tmp_path / "again.safetensors", found, model)
    assert again.read_bytes() == path.read_bytes()  # how they were found is kept
    mixed = [some_modes(torch.float32)[0], some_modes()[1]]
    kept = tlb.load_modes(tlb.save_modes(path, mixed, model))
    assert torch.equal(kept[0].direction.float(), mixed[0].direction)
    assert torch.equal(kept[1].direction, mixed[1].direction)
    assert kept.found == ""


@pytest.mark.parametrize("host", hosts())
def test_modes_of_another_model_are_refused(host, tmp_path):
    model, other = native("RMS", host), native("RMS", host)
    path = tlb.save_modes(tmp_path / "modes.safetensors", some_modes(), model)
    with torch.no_grad():
        other.blocks[1].mlp.W_out[0] += 1e-3
    found = tlb.load_modes(path)
    tokens = torch.randint(0, 40, (1, 5))
    before = other(tokens)
    ours = found.fingerprint
    theirs = tlb.hosts.provenance.fingerprint(tlb.get_host(other))
    refusal = f"fingerprint {ours}.*fingerprint {theirs}.*Load the model"
    for call in (
        lambda: tlb.load_modes(path, other),
        lambda: tlb.ablate(other, found).__enter__(),
        lambda: tlb.ablate_(other, found),
        lambda: tlb.save_modes(tmp_path / "new", found, other),
    ):
        with pytest.raises(ValueError, match=refusal):
            call()
    assert torch.equal(other(tokens), before) and not (tmp_path / "new").exists()
    with tlb.ablate(model, found):
        model(tokens)
    with tlb.ablate(other, list(found)):  # the bare modes: nothing is checked
        other(tokens)


def test_what_cannot_be_saved_is_refused(tmp_path):
    model, (mode, _) = native("RMS", hosts()[0]), some_modes()
    path = tmp_path / "modes.safetensors"
    cases = {
        "`modes` is empty": [],
        "has layers 0-1": [tlb.Mode(2, mode.direction, 1.0, mode.eigenvector)],
        "d_model = 16": [tlb.Mode(0, torch.ones(3), 1.0, mode.eigenvector)],
    }
    for words, modes in cases.items():
        with pytest.raises(ValueError, match=words):
            tlb.save_modes(path, modes, model)
    with pytest.raises(ValueError, match="nan|JSON"):
        tlb.save_modes(path, [tlb.Mode(0, mode.direction, float("nan"), mode.eigenvector)], model)
    with pytest.raises(CheckpointError, match="cannot be written"):
        tlb.save_modes(tmp_path / "missing" / "modes", mode, model)
    assert not list(tmp_path.iterdir())


def damaged(path: Path) -> dict[str, bytes]:
    """What a file may have become; each with the words of its refusal."""
    whole = path.read_bytes()
    other, newer, short = (path.with_name(name) for name in ("other", "newer", "short"))
    save_file({"x": torch.zeros(2)}, other)
    notes = {"format": "tl_bilinear modes", "version": 3}
    save_file({"x": torch.zeros(2)}, newer, {"tl_bilinear": json.dumps(notes)})
    notes = {**notes, "version": 2, "modes": [], "found": "", "provenance": {}}
    save_file({"directions": torch.zeros(2)}, short, {"tl_bilinear": json.dumps(notes)})
    return {
        "cannot be read": whole[:-9],
        "holds no tl_bilinear modes": other.read_bytes(),
        "has version 3": newer.read_bytes(),
        "is damaged": short.read_bytes(),
    }


def test_damaged_files_are_refused(tmp_path):
    path = tlb.save_modes(tmp_path / "modes", some_modes(), native("RMS", hosts()[0]))
    for words, content in damaged(path).items():
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=words):
            tlb.load_modes(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        tlb.load_modes(tmp_path / "nowhere")
