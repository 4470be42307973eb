"""Hooks that a bridge's host attaches: they do what they do in the model's own context."""

from contextlib import ExitStack

import pytest
import torch
from models import native, process_, save, tiny_llama
from weight_edits import logits_of

import tl_bilinear as tlb

HOST = "transformer_bridge"
SITES = ("ln2.hook_normalized", "mlp.hook_in", "mlp.hook_out", "hook_resid_mid", "attn.hook_out")


def halve(value, hook):
    return 0.5 * value


def shift(value, hook):
    return value + 1.0


@pytest.mark.filterwarnings("ignore:A forward hook edited hook_scale")
@pytest.mark.parametrize("processed", [False, True], ids=["raw", "processed"])
@pytest.mark.parametrize("site", SITES)
def test_a_hook_does_what_it_does_in_the_models_own_context(processed, site, tmp_path):
    model = tlb.load(save(tiny_llama(), tmp_path / "llama"), host=HOST)
    if processed:
        process_(model, HOST)
    seen = []

    def look(value, hook):
        seen.append(value.clone())

    edits = (look, halve, shift, look)
    hooks = [(f"blocks.{layer}.{site}", edit) for layer in (1, 0) for edit in edits]
    plain = logits_of(model)
    with model.hooks(fwd_hooks=hooks):
        expected = [logits_of(model), *seen]
    seen.clear()
    with tlb.get_host(model).hooks(hooks) as given:
        found = [logits_of(given), *seen]
    assert len(found) == len(expected) == 5
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(found[2], 0.5 * found[1] + 1.0)
    assert torch.equal(logits_of(model), plain)


def test_hooks_of_others_stay_as_they_are():
    model = native("RMS", HOST)
    view = tlb.get_host(model)
    site = view.mlp_out_site(0)
    level, point = model.context_level, model.hook_dict[site]
    point.add_hook(shift)
    point.add_hook(shift, is_permanent=True)
    point.add_hook(shift, level=level + 1)  # as a context with reset_hooks_end=False leaves it
    held = list(point.fwd_hooks)
    expected = logits_of(model)
    for failing in (False, True):
        with ExitStack() as stack:
            if failing:
                stack.enter_context(pytest.raises(RuntimeError, match="boom"))
            with view.hooks([(site, halve)]):
                with view.hooks([(site, halve), (site, halve)]):
                    assert len(point.fwd_hooks) == len(held) + 3
                    assert model.context_level == level + 2
                assert len(point.fwd_hooks) == len(held) + 1
                if failing:
                    raise RuntimeError("boom")
        assert model.context_level == level
    assert point.fwd_hooks == held
    assert torch.equal(logits_of(model), expected)


def test_hooks_that_are_reset_inside_are_removed_once():
    model = native("RMS", HOST)
    view, plain = tlb.get_host(model), logits_of(model)
    with view.hooks([(view.mlp_out_site(0), halve)]):
        model.reset_hooks()
        assert torch.equal(logits_of(model), plain)
    assert torch.equal(logits_of(model), plain)


def test_a_hook_that_waits_for_a_setting_is_refused():
    model = native("RMS", HOST)
    view = tlb.get_host(model)
    site = "blocks.0.attn.hook_result"
    with pytest.raises(ValueError, match="use_attn_result"), view.hooks([(site, halve)]):
        pass
    assert not model.hook_dict[site].fwd_hooks


@pytest.mark.parametrize("site", ["blocks.0.mlp.gote.hook_out", "blocks.9.mlp.hook_out", "hook_in"])
def test_an_unknown_name_is_refused(site):
    model = native("RMS", HOST)
    with pytest.raises(KeyError, match="model.hook_dict"):
        tlb.get_host(model).hooks([("blocks.0.mlp.hook_out", halve), (site, halve)])
    assert not model.hook_dict["blocks.0.mlp.hook_out"].fwd_hooks


def test_entering_a_block_lists_no_hooks(monkeypatch):
    """A bridge's `hook_dict` resolves every alias of the model at each access."""
    model = native("RMS", HOST)
    listed, whole = [], type(model).hook_dict
    monkeypatch.setattr(
        type(model), "hook_dict", property(lambda m: listed.append(m) or whole.__get__(m))
    )
    vector = torch.eye(model.cfg.d_model)
    modes = [tlb.Mode(layer, vector[0], 0.1, vector[1]) for layer in range(model.cfg.n_layers)]
    with tlb.ablate(model, modes):
        logits_of(model)
    assert not listed
    assert len(model.hook_dict) and listed  # the count counts
