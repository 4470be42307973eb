"""Undoing edits: bit for bit from their ledger; from the saved files alone as far as it goes.

Whatever the files alone can undo is called masking, and only that.
"""

from typing import Any

import pytest
import torch
from models import hosts, native, save, tiny_llama
from torch import Tensor
from weight_edits import close, hooked, logits_of, near_modes, plain_transformers

import tl_bilinear as tlb
from tl_bilinear.checkpoints.error import CheckpointError

EDITS = {
    "neurons": lambda model, modes: tlb.ablate_(model, modes),
    "refit": lambda model, modes: tlb.ablate_(model, modes, "refit", steps=20),
    "outputs": lambda model, modes: tlb.project_outputs_(
        model, tlb.OutputMode(1, modes[0].direction)
    ),
    "inputs": lambda model, modes: tlb.project_inputs_(
        model, tlb.InputMode(1, modes[0].eigenvector)
    ),
}


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize(
    ("how", "dtype"),
    [("neurons", torch.float64), *((how, torch.float32) for how in EDITS)],
    ids=str,
)
def test_saved_reloaded_and_undone(host, how, dtype, tmp_path):
    source = save(tiny_llama(mlp_bias=False), tmp_path / "source")
    model = tlb.load(source, host=host, dtype=dtype)
    modes, before = near_modes(model), logits_of(model)
    expected = hooked(model, tlb.ablate(model, modes))
    edit = EDITS[how](model, modes)
    if how == "neurons":
        close(logits_of(model), expected, 1e-6 if dtype == torch.float64 else 1e-4)
    folder = tlb.save_pretrained(model, tmp_path / "edited")
    close(logits_of(plain_transformers(folder, dtype)), logits_of(model), 1e-5)
    again = tlb.load(folder, host=host, dtype=dtype)
    assert torch.equal(logits_of(again), logits_of(model))
    with pytest.raises(CheckpointError, match="lies in the model folder"):
        edit.ledger.save(folder / "ledger.safetensors")
    assert not [path for path in folder.iterdir() if "ledger" in path.name]
    ledger = tlb.Ledger.load(edit.ledger.save(tmp_path / "ledger.safetensors"))
    for each in (model, again):
        tlb.undo_(each, ledger)
        assert torch.equal(logits_of(each), before)
        with pytest.raises(ValueError, match="it is undone already"):
            tlb.undo_(each, ledger)
    assert tlb.get_host(again).d_mlp == 24


# ---- masking or removal: who has the files alone, and tries --------------------------------------


def undone_from_files(model: Any) -> Tensor:
    """Delete every neuron whose two readings are one, which no trained neuron's are."""
    with torch.no_grad():
        for block in model.blocks:
            left, right = block.mlp.W_gate, block.mlp.W_in
            sizes = (left.norm(dim=0) * right.norm(dim=0)).clamp_min(1e-30)
            parallel = (left * right).sum(0) / sizes > 1 - 1e-5
            block.mlp.W_out[parallel] = 0
    return logits_of(model)


@pytest.mark.parametrize("how", EDITS)
def test_what_can_be_undone_from_the_files_is_called_masking(how, tmp_path):
    host = hosts()[0]
    model = tlb.load(save(tiny_llama(mlp_bias=False), tmp_path / "source"), host=host)
    before = logits_of(model)
    edit = EDITS[how](model, near_modes(model))
    damage = (logits_of(model) - before).abs().max()
    folder = tlb.save_pretrained(model, tmp_path / "edited")
    left = (undone_from_files(tlb.load(folder, host=host)) - before).abs().max() / damage
    assert damage > 1e-2
    if how == "neurons":
        assert edit.kind == "masking" and left < 1e-4
    else:
        assert edit.kind == "removal" and left > 0.5
    if how == "outputs":  # the row of W_out is gone: no combination of the others gives it back
        out, u = tlb.get_host(model).mlp_weights(1).tensor.out, near_modes(model)[0].direction
        assert torch.linalg.matrix_rank(out.double(), rtol=1e-5) == 15 and u.any()


# ---- ledgers ----------------------------------------------------------------------


def test_a_ledger_of_another_model_or_a_damaged_one_is_refused(tmp_path):
    model, other = native("RMS", hosts()[0]), native("LN", hosts()[0])
    edit = tlb.ablate_(model, near_modes(model))
    before = logits_of(other)
    with pytest.raises(ValueError, match=f"{edit.ledger.after}.*give the edited model"):
        tlb.undo_(other, edit.ledger)
    assert torch.equal(logits_of(other), before)
    path = edit.ledger.save(tmp_path / "ledger")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="cannot be read"):
        tlb.Ledger.load(path)
    modes = tlb.save_modes(tmp_path / "modes", near_modes(other), other)
    with pytest.raises(CheckpointError, match="holds no tl_bilinear undo ledger"):
        tlb.Ledger.load(modes)
