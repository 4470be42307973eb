"""`HookedTransformer.from_pretrained` with the names of the public packed checkpoints (3.9)."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from models import cache, hosts, word_tokenizer
from test_layouts import CONFIG, VOCAB, tdooms_logits, tdooms_weights, write

import tl_bilinear as tlb
from tl_bilinear.checkpoints.folder import CheckpointError
from tl_bilinear.checkpoints.public_names import PACKED

HOOKED = "hooked_transformer" in hosts()
needs_hooked = pytest.mark.skipif(not HOOKED, reason="4.x has no HookedTransformer")
TOKENS = torch.randint(0, VOCAB, (2, 20), generator=torch.Generator().manual_seed(6))


def published(tmp_path: Path, monkeypatch, weights: dict, **config) -> None:
    """A cache that holds tdooms/fw-medium, tiny, and the tokenizer that its file names."""

    def fill(folder: Path) -> None:
        for path in write(tmp_path / "made", weights, tokenizer="ts-4096", **config).iterdir():
            path.rename(folder / path.name)

    cache(tmp_path / "cache", "tdooms/fw-medium", fill, monkeypatch)
    cache(tmp_path / "cache", "tdooms/ts-tokenizer-4096", word_tokenizer, monkeypatch)


def expected(weights: dict, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    weights = {name: value.to(dtype) for name, value in weights.items()}
    return tdooms_logits(weights, CONFIG, TOKENS).log_softmax(-1)


@needs_hooked
@pytest.mark.parametrize("older", [False, True], ids=["fw", "older, with gains and biases"])
@pytest.mark.parametrize("processed", [False, True], ids=["no processing", "default"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_public_name_is_the_model_that_its_authors_describe(
    older, processed, dtype, tmp_path, monkeypatch
):
    from transformer_lens import HookedTransformer

    weights = tdooms_weights(older=older, biased=older)
    published(tmp_path, monkeypatch, weights)
    tlb.register()
    make = HookedTransformer.from_pretrained
    make = make if processed else HookedTransformer.from_pretrained_no_processing
    model = make("tdooms/fw-medium", device="cpu", dtype=dtype)
    assert model.cfg.model_name == "fw-medium" and model.cfg.dtype == dtype
    assert model.cfg.normalization_type == ("RMSPre" if processed else "RMS")
    assert model.to_tokens("two one").tolist() == [[1, 4, 3]]
    with torch.no_grad():
        found = model(TOKENS).log_softmax(-1)
    torch.testing.assert_close(found, expected(weights, dtype), rtol=0, atol=1e-4)
    tlb.self_check(model)


@needs_hooked
def test_weights_are_processed_where_they_lie(tmp_path, monkeypatch):
    """from_pretrained processes before it moves: the device may not be there yet."""
    from transformer_lens import HookedTransformer

    weights = tdooms_weights()
    published(tmp_path, monkeypatch, weights)
    tlb.register()
    model = HookedTransformer.from_pretrained(
        "tdooms/fw-medium", device="cuda", move_to_device=False
    )
    assert model.cfg.device == "cuda"
    model.cfg.device = "cpu"
    with torch.no_grad():
        found = model(TOKENS).log_softmax(-1)
    torch.testing.assert_close(found, expected(weights), rtol=0, atol=1e-4)


@needs_hooked
def test_a_public_swiglu_is_loaded_as_what_it_is(tmp_path, monkeypatch):
    from transformer_lens import HookedTransformer

    published(tmp_path, monkeypatch, tdooms_weights(), gate="silu")
    tlb.register()
    model = HookedTransformer.from_pretrained("tdooms/fw-medium", device="cpu")
    assert model.cfg.act_fn == "silu"
    with pytest.raises(tlb.NotBilinearError, match="SiLU activation"):
        tlb.self_check(model)


@needs_hooked
def test_bad_input_is_one_clear_error(tmp_path, monkeypatch):
    from transformer_lens import HookedTransformer

    published(tmp_path, monkeypatch, tdooms_weights(), normalization=False)
    tlb.register()
    with pytest.raises(CheckpointError, match="norm-free"):
        HookedTransformer.from_pretrained("tdooms/fw-medium", device="cpu")
    with pytest.raises(CheckpointError, match="not in the local Hugging Face cache"):
        HookedTransformer.from_pretrained("tdooms/ts-large", device="cpu")
    with pytest.raises(ValueError, match=r"\['revision'\] cannot be given for 'tdooms/fw-medium'"):
        HookedTransformer.from_pretrained("tdooms/fw-medium", device="cpu", revision="v2")


@needs_hooked
def test_other_names_still_reach_upstream(monkeypatch):
    from transformer_lens import loading_from_pretrained as loading

    tlb.register()
    asked = []
    small = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 16,
        "n_head": 4,
        "n_ctx": 32,
    }

    def from_pretrained(name, **kwargs):
        from transformers import GPT2Config

        asked.append(name)
        return GPT2Config(**small, n_layer=1, vocab_size=40, n_positions=32)

    monkeypatch.setattr(loading, "AutoConfig", SimpleNamespace(from_pretrained=from_pretrained))
    cfg = loading.get_pretrained_model_config("gpt2", device="cpu")
    assert asked == ["gpt2"] and cfg.original_architecture == "GPT2LMHeadModel"
    assert cfg.act_fn != "bilinear"

    from transformers import GPT2LMHeadModel

    hf_model = GPT2LMHeadModel(from_pretrained("gpt2"))
    state = loading.get_pretrained_state_dict("gpt2", cfg, hf_model)
    assert state["embed.W_E"].shape == (40, 16) and "pos_embed.W_pos" in state


@needs_hooked
def test_registering_twice_adds_each_name_once_and_wraps_once():
    from transformer_lens import loading_from_pretrained as loading

    tlb.register()
    wrapped = (loading.convert_hf_model_config, loading.get_pretrained_state_dict)
    names = list(loading.OFFICIAL_MODEL_NAMES)
    tlb.register()
    assert (loading.convert_hf_model_config, loading.get_pretrained_state_dict) == wrapped
    assert names == loading.OFFICIAL_MODEL_NAMES
    assert all(names.count(name) == 1 for name in PACKED)


@pytest.mark.skipif(HOOKED, reason="4.x alone")
def test_without_a_hooked_transformer_registering_adds_no_names():
    tlb.register()
    tlb.register()
