"""`device`, `device_map` and `revision` of `load`; what is refused stands in faults.py."""

from pathlib import Path

import pytest
import torch
from models import cache, hosts, native, save, tiny_llama

import tl_bilinear as tlb
from tl_bilinear.checkpoints.placement import Placement, placement

TOKENS = torch.arange(18)[None]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS)


@pytest.mark.parametrize("host", hosts())
def test_one_device_is_the_same_whichever_way_it_is_said(host, tmp_path):
    folder = save(tiny_llama(), tmp_path / "llama")
    expected = logits(tlb.load(folder, host=host))
    for device_map in (
        "auto",
        "cpu",
        {"": "cpu"},
        torch.device("cpu"),
        {"model": "cpu", "": "cpu"},
    ):
        model = tlb.load(folder, host=host, device_map=device_map)
        assert torch.equal(logits(model), expected)
        assert {str(value.device) for value in model.parameters()} == {"cpu"}


def test_our_own_format_takes_a_device_map_too(tmp_path):
    model = native("LN", hosts()[0], torch.float32)
    folder = tlb.save_pretrained(model, tmp_path / "own")
    assert torch.equal(logits(tlb.load(folder, device_map={"": "cpu"})), logits(model))


def test_transformers_itself_resolves_auto_as_we_do(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("for machines without a GPU")
    from transformers import AutoModelForCausalLM

    folder = save(tiny_llama(), tmp_path / "llama")
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="auto", local_files_only=True)
    assert str(model.device) == placement(None, "auto").device == "cpu"


def test_several_gpus_are_transformers_business(monkeypatch):
    assert placement(None, "auto", accelerators=1) == Placement("cuda:0")
    assert placement(None, "balanced", accelerators=2) == Placement("cuda:0", "balanced")
    monkeypatch.setattr(torch, "empty", lambda *args, device: None)
    spread = placement(None, {"model": 0, "lm_head": 1})
    assert spread == Placement("cuda:0", {"model": "cuda:0", "lm_head": "cuda:1"})
    with pytest.raises(ValueError, match="a HookedTransformer stands on one device"):
        spread.require_single("HookedTransformer", "use a bridge")
    with pytest.raises(ValueError, match="cannot be split between the CPU and GPUs"):
        placement(None, {"model": 0, "lm_head": "cpu"})
    with pytest.raises(ValueError, match="is empty"):
        placement(None, {})


def test_a_revision_is_a_branch_a_tag_or_a_commit_in_the_local_cache(tmp_path, monkeypatch):
    first, second = tiny_llama(), tiny_llama()
    with torch.no_grad():
        second.lm_head.weight.mul_(2)
    snapshot = cache(tmp_path / "cache", "someone/two", first.save_pretrained, monkeypatch)
    other = "f" * 40
    second.save_pretrained(snapshot.parent / other)
    refs: Path = snapshot.parents[1] / "refs"
    (refs / "v2").write_text(other)
    one, two = logits(tlb.load("someone/two")), logits(tlb.load("someone/two", revision="v2"))
    assert torch.equal(two, logits(tlb.load("someone/two", revision=other)))
    assert torch.equal(one, logits(tlb.load("someone/two", revision="main")))
    torch.testing.assert_close(two, 2 * one, rtol=1e-5, atol=1e-5)
