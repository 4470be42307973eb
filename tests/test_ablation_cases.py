"""Ablation where it is easily wrong: modes given twice or rounded, interruptions, damaged files."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from models import hosts, native, save, tiny_llama
from weight_edits import close, hooked, logits_of, near_modes

import tl_bilinear as tlb
from tl_bilinear.ablation.layer_edit import layer_edits
from tl_bilinear.ablation.sealed_file import write_sealed
from tl_bilinear.checkpoints.error import CheckpointError
from tl_bilinear.hosts import resizing
from tl_bilinear.hosts.provenance import fingerprint

TEXTS = [torch.tensor([1, 4, 9, 16, 25]), torch.tensor([1, 7, 8])]


def logits_without(model: Any, modes: Any, **options: Any) -> torch.Tensor:
    return hooked(model, tlb.ablate(model, modes, **options))


# ---- directions and modes that are the same ------------------------------------------------------


def test_modes_given_twice_are_found_among_many():
    generator = torch.Generator().manual_seed(8)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    width, many = 48, 400
    directions, vectors = random(40, width), random(many, width)
    of = [0 if i % 3 else 1 + i // 3 % 39 for i in range(many)]  # most are of the first one
    modes = [tlb.Mode(0, directions[c], 1.0 + i / many, vectors[i]) for i, c in enumerate(of)]
    factors = random(many).tolist()
    copies = [
        replace(mode, direction=mode.direction * f, eigenvalue=mode.eigenvalue * f)
        for mode, f in zip(modes, factors, strict=True)
    ]
    near = [replace(mode, eigenvalue=1.02 * mode.eigenvalue) for mode in modes[:5]]  # no copies
    shuffled = [
        [*modes, *copies, *near][i] for i in torch.randperm(2 * many + 5, generator=generator)
    ]
    host = tlb.get_host(native("RMS", "transformer_bridge"))
    found = layer_edits(host, shuffled, 0.0)[0]
    assert len(found.means) == many + 5
    x = random(7, width)
    moved = torch.zeros(7, 40, dtype=torch.float64)
    for c, mode in zip([*of, *of[:5]], [*modes, *near], strict=True):
        moved[:, c] += mode.contributions(x)
    close(found(x) @ directions.mT, moved, 1e-9)


@pytest.mark.parametrize("host", hosts())
def test_a_mode_given_twice_is_taken_out_once(host):
    model = native("LN", host)
    one, *_, other = near_modes(model)[:4]  # of two directions
    turned = replace(one, direction=-2 * one.direction, eigenvalue=-2 * one.eigenvalue)
    mirrored = replace(one, eigenvector=-one.eigenvector)
    expected = logits_without(model, [one, other])
    assert (expected - logits_of(model)).abs().max() > 1e-3
    for copies in ([one], [turned], [mirrored], [one, turned, mirrored]):
        close(logits_without(model, [one, other, *copies]), expected, 1e-9)
    tlb.ablate_(model, [turned, other, one])
    close(logits_of(model), expected, 1e-6)


@pytest.mark.parametrize("factor", [-1.0, 2.0, -0.5])
def test_parallel_directions_are_one(factor):
    """Two modes of u, one of them written as a mode of a multiple of u."""
    model = native("LN", hosts()[0])
    one, other = near_modes(model)[:2]
    other = replace(other, direction=one.direction)
    scaled = replace(other, direction=factor * one.direction, eigenvalue=factor * other.eigenvalue)
    expected = logits_without(model, [one, other])
    close(logits_without(model, [one, scaled]), expected, 1e-9)


@pytest.mark.parametrize("rounding", [torch.bfloat16, torch.float32])
def test_rounded_directions_are_no_others(rounding):
    model = native("LN", hosts()[0])
    one, other = near_modes(model)[:2]
    other = replace(other, direction=one.direction)
    rounded = replace(other, direction=one.direction.to(rounding).double())
    effect = logits_without(model, [one, other]) - logits_of(model)
    off = logits_without(model, [one, rounded]) - logits_of(model) - effect
    assert off.abs().max() < 0.02 * effect.abs().max()


def test_nearly_parallel_directions_stay_apart():
    """Cosine 0.99, and 0.9998: u . y loses its own modes alone (DESIGN 2.8)."""
    model = native(None, hosts()[0])
    host = tlb.get_host(model)
    first = near_modes(model)[0]
    u = first.direction / first.direction.norm()
    across = torch.linalg.qr(torch.stack([u, torch.randn(16).double()]).T).Q[:, 1]
    for angle in (0.14, 0.02):
        v = u * torch.cos(torch.tensor(angle)) + across * torch.sin(torch.tensor(angle))
        modes = [replace(first, direction=u), replace(first, direction=v, eigenvalue=3.0)]
        modes[1] = replace(modes[1], eigenvector=torch.randn(16).double())
        x = torch.randn(1, 6, 16, dtype=torch.float64)
        before = host.run_mlp(1, x)
        edit = tlb.ablate_(model, modes)
        change = host.run_mlp(1, x) - before
        for mode, direction in zip(modes, (u, v), strict=True):
            lost = mode.eigenvalue * (x @ mode.eigenvector) ** 2
            close(change @ direction, -lost, 1e-9)
        tlb.undo_(model, edit.ledger)


# ---- weights that were written -------------------------------------------------------------------


@pytest.mark.parametrize("host", hosts())
def test_a_mean_in_the_weights_is_a_bias_that_everything_sees(host, tmp_path):
    model = tlb.load(save(tiny_llama(mlp_bias=False), tmp_path / "source"), host=host)
    modes, before = near_modes(model), logits_of(model)
    expected = logits_without(model, modes[:1], scale="mean", texts=TEXTS)
    first = tlb.ablate_(model, modes[:1], scale="mean", texts=TEXTS)
    close(logits_of(model), expected, 1e-4)
    layer = first.layers[0].layer
    assert first.layers[0].error < 1e-4
    assert tlb.get_host(model).mlp_weights(layer).out_bias.abs().max() > 0
    tlb.self_check(model)
    written = logits_of(model)
    again = tlb.load(tlb.save_pretrained(model, tmp_path / "edited"), host=host)
    close(logits_of(again), written, 1e-5)
    both = logits_without(model, modes[1:2])
    second = tlb.ablate_(model, modes[1:2])
    close(logits_of(model), both, 1e-4)
    with pytest.raises(ValueError, match="later edits of it are undone first"):
        tlb.undo_(model, first.ledger)
    tlb.undo_(model, second.ledger)
    assert torch.equal(logits_of(model), written)
    tlb.undo_(model, first.ledger)
    assert torch.equal(logits_of(model), before)


@pytest.mark.parametrize("host", hosts()[:1])  # the bridge's turn is TransformerLens 4's
def test_an_interruption_at_any_step_leaves_the_model(host, tmp_path, monkeypatch):
    model = tlb.load(save(tiny_llama(mlp_bias=False), tmp_path / "source"), host=host)
    modes, before, width = near_modes(model), logits_of(model), tlb.get_host(model).d_mlp
    mark = fingerprint(tlb.get_host(model))
    left = 0

    def counted(step: Any) -> Any:
        def run(*args: Any) -> None:
            nonlocal left
            step(*args)
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

        return run

    for name in ("set", "copy"):
        step = getattr(resizing._Journal, name)
        monkeypatch.setattr(resizing._Journal, name, counted(step))
    for stop in range(1, 200):
        left = stop
        try:
            tlb.ablate_(model, modes, scale="mean", texts=TEXTS)
        except KeyboardInterrupt:
            assert fingerprint(tlb.get_host(model)) == mark
            assert tlb.get_host(model).d_mlp == width == model.cfg.d_mlp
            assert torch.equal(logits_of(model), before)
        else:
            break
    assert 10 < stop < 199  # it was interrupted at every step before


def test_a_refit_that_did_not_remove_is_not_called_removal(unchecked):
    model = native("RMS", hosts()[0])
    modes = near_modes(model)
    edit = tlb.ablate_(model, modes, "refit", steps=1)
    assert edit.left_over > 0.1 and edit.kind == "masking" and "left over" in str(edit)
    tlb.undo_(model, edit.ledger)
    edit = tlb.ablate_(model, modes, "refit", scale=0.5, steps=20)
    assert edit.kind == "masking"  # a mode that was scaled can be scaled back
    tlb.undo_(model, edit.ledger)
    nothing = tlb.ablate_(model, modes, "refit", scale=1.0, steps=2)
    assert nothing.left_over == 0 and nothing.layers[0].removed == 0
    for steps in (0, -3, 2.5):
        with pytest.raises(ValueError, match="`steps` must be a whole number above 0"):
            tlb.ablate_(model, modes, "refit", steps=steps)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("host", hosts())
def test_the_foreseen_effect_knows_the_gate(host):
    """Without norms the last layer's direct effect is the real one."""
    model = tlb.freeze_gates_(native(None, host, act_fn="silu"))
    last = tlb.get_host(model).n_layers - 1
    mode = tlb.OutputMode(last, torch.randn(16, dtype=torch.float64))
    edit = tlb.project_outputs_(model, mode, prompt=TEXTS[0], target=(3, 5))
    assert edit.target is not None and abs(edit.target.change) > 1e-3
    assert edit.target.direct == pytest.approx(edit.target.change, rel=1e-6)


# ---- whose modes, and which files ----------------------------------------------------------------


@pytest.mark.parametrize("host", hosts()[:1])  # the bridge's turn is TransformerLens 4's
def test_every_kind_of_weight_is_in_the_fingerprint(host):
    marks = []
    for change in range(7):
        torch.manual_seed(0)
        model = native("LN", host)
        block = model.blocks[1]
        with torch.no_grad():
            if change == 1:
                block.mlp.W_out[1::2] = 0
            elif change == 2:
                tlb.get_host(model).mlp_norm(1).gain.mul_(3)  # pyright: ignore
            elif change == 3:
                block.attn.W_O[...] = 0
            elif change == 4:
                block.attn.W_Q[1] *= 2
            elif change == 5:
                tlb.get_host(model).final_norm().bias.add_(1)  # pyright: ignore
            elif change == 6:
                model = model.float()
        marks.append(fingerprint(tlb.get_host(model)))
    assert len(set(marks)) == len(marks)


def test_sets_of_modes_are_checked_and_single_ones_say_what_they_need(tmp_path, unchecked):
    model, other = native("RMS", hosts()[0]), native("RMS", hosts()[0])
    modes = near_modes(model)
    with torch.no_grad():
        other.blocks[0].attn.W_O[0] += 1
    found = tlb.load_modes(tlb.save_modes(tmp_path / "modes", modes, model))
    part = found[:1]
    assert len(part) == 1 and part.fingerprint == found.fingerprint
    with pytest.raises(ValueError, match="are of .*fingerprint"), tlb.ablate(other, part):
        pass
    wrong: dict[str, Any] = {
        "a pair of a Mode and a number": [(modes[0], 1.0)],
        "got str": "modes.safetensors",
        "got NoneType": None,
        "got OutputMode": tlb.OutputMode(0, modes[0].direction),
        "it must be finite": replace(modes[0], eigenvalue=float("inf")),
        "a eigenvector of length zero": replace(modes[0], eigenvector=torch.zeros(16)),
    }
    for words, given in wrong.items():
        with pytest.raises(ValueError, match=words), tlb.ablate(model, given):
            pass
    for scale in (None, [1.0], torch.ones(2), float("nan")):
        with pytest.raises(ValueError, match="`scale` must be"), tlb.ablate(model, modes, scale):  # pyright: ignore
            pass
    with pytest.raises(ValueError, match="`texts` must be strings"):
        tlb.ablate_(model, modes, texts=[[1, 2]])  # pyright: ignore
    with pytest.raises(ValueError, match=r"`ledger` must be a Ledger \(edit.ledger"):
        tlb.undo_(model, tlb.ablate_(model, modes))  # pyright: ignore


def test_a_single_text_is_one_text():
    model = tlb.load("stories-1l", host=hosts()[0])
    mode = tlb.attribute_modes(model, "Tim was sad because he lost", (" his", " her")).mode(0, 0)
    text = "Once upon a time there was a dog."
    tokens = model.to_tokens("He lost his")
    found = []
    for texts in (text, [text]):
        with torch.no_grad(), tlb.ablate(model, mode, "mean", texts=texts):
            found.append(model(tokens))
    assert torch.equal(*found)


def test_files_that_were_damaged_or_are_something_else(tmp_path):
    model = native("RMS", hosts()[0])
    modes = near_modes(model)
    edit = tlb.ablate_(model, modes)
    ledger, kept = edit.ledger.save(tmp_path / "ledger"), tmp_path / "modes"
    tlb.save_modes(kept, modes, model)
    for path, read in ((ledger, tlb.Ledger.load), (kept, tlb.load_modes)):
        whole = bytearray(path.read_bytes())
        whole[-9] ^= 1  # one bit of the last tensor
        path.write_bytes(whole)
        with pytest.raises(CheckpointError, match="is damaged"):
            read(path)
    rows = {name: torch.ones(1, 16) for name in ("directions", "eigenvectors")}
    huge = {"layer": 0, "eigenvalue": 10**400, "label": ""}
    write_sealed(tmp_path / "huge", "tl_bilinear modes", {"modes": [huge]}, rows)
    write_sealed(tmp_path / "short", "tl_bilinear undo ledger", {"layers": [0]}, rows)
    for path, read in (
        (tmp_path / "huge", tlb.load_modes),
        (tmp_path / "short", tlb.Ledger.load),
    ):
        with pytest.raises(CheckpointError, match="that can be read .*: fetch the file again"):
            read(path)
    other = save(tiny_llama(mlp_bias=False), tmp_path / "model") / "model.safetensors"
    before = other.read_bytes()
    for place in (other, ledger):
        with pytest.raises(CheckpointError, match="holds something else"):
            tlb.save_modes(place, modes, model)
    assert other.read_bytes() == before
