"""Loading: what is right loads exactly, what is wrong raises one clear error."""

import re
from pathlib import Path

import pytest
import torch
from damage import as_torch, split_names, torch_shards
from models import cache, hosts, save, tiny_llama, word_tokenizer

import tl_bilinear as tlb
from tl_bilinear import NotBilinearError
from tl_bilinear.checkpoints import memory
from tl_bilinear.checkpoints.bundled import ZOO
from tl_bilinear.checkpoints.folder import CheckpointError
from tl_bilinear.checkpoints.weight_files import WeightFiles


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tiny_llama(), tmp_path / "llama")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_torch_files_load_as_safetensors_do(name, zipped, folder):
    tokens = torch.randint(0, 40, (1, 9))
    with torch.no_grad():
        expected = tlb.load(folder)(tokens)
        as_torch(folder, name, _use_new_zipfile_serialization=zipped)
        assert torch.equal(tlb.load(folder)(tokens), expected)
    assert tlb.get_host(tlb.load(folder, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_sharded_torch_files_load(folder):
    first, second = split_names(folder)
    tokens = torch.randint(0, 40, (1, 9))
    with torch.no_grad():
        expected = tlb.load(folder)(tokens)
        weight_map = dict.fromkeys(first, "a.bin") | dict.fromkeys(second, "b.bin")
        torch_shards(folder, {"a.bin": first, "b.bin": second}, weight_map)
        assert torch.equal(tlb.load(folder)(tokens), expected)


def test_a_checkpoint_larger_than_memory_fails_before_it_is_read(folder, monkeypatch, tmp_path):
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    meminfo.write_text("MemTotal: 99999999 kB\nMemAvailable: 20 kB\n")
    monkeypatch.setattr(WeightFiles, "read", lambda self, name: pytest.fail("it was read"))
    with pytest.raises(CheckpointError, match="at least 0.0 GiB for its weights in float32, and 0"):
        tlb.load(folder)
    assert tlb.load(folder, dtype=torch.bfloat16).cfg.n_layers == 2  # half the size fits


def test_memory_is_not_checked_where_the_system_does_not_tell(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "no-such-file")
    assert (memory.available_bytes() or 0) > 2**20
    monkeypatch.delattr(memory.os, "sysconf")
    assert memory.available_bytes() is None
    assert tlb.load(folder).cfg.n_layers == 2


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("kind", ["safetensors", "shards", "torch"])
def test_hub_ids_load_from_the_local_cache(host, kind, tmp_path, monkeypatch):
    source = tiny_llama()

    def fill(folder: Path) -> None:
        source.save_pretrained(folder, max_shard_size="4KB" if kind == "shards" else "1GB")
        word_tokenizer(folder)
        if kind == "torch":
            as_torch(folder)
        (folder / "modeling.py").write_text("raise SystemExit")  # never run

    cache(tmp_path / "cache", "someone/tiny-bilinear", fill, monkeypatch)
    model = tlb.load("someone/tiny-bilinear", host=host)
    assert model.cfg.model_name == "someone/tiny-bilinear"
    assert model.to_tokens("two one").tolist() == [[1, 4, 3]]
    tokens = torch.randint(0, 40, (1, 7))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), source(tokens).logits, rtol=1e-4, atol=1e-4)


def test_hub_ids_that_are_nowhere_say_what_to_do(tmp_path, monkeypatch):
    partial = cache(
        tmp_path / "cache",
        "someone/half",
        lambda folder: (folder / "config.json").write_text("{}"),
        monkeypatch,
    )
    with pytest.raises(
        CheckpointError,
        match="'someone/unknown' is not in the local Hugging Face cache, and could not be fetched "
        ".*Check the name; connect and set HF_HUB_OFFLINE=0, or give a local folder",
    ):
        tlb.load("someone/unknown")
    with pytest.raises(CheckpointError, match="lacks weights: .*only part of it is in the cache"):
        tlb.load("someone/half")
    (partial / "config.json").unlink()
    (partial / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"lacks config\.json"):
        tlb.load("someone/half")


def test_a_local_folder_comes_before_a_hub_id(tmp_path, monkeypatch):
    save(tiny_llama(), tmp_path / "someone" / "tiny")
    monkeypatch.chdir(tmp_path)
    assert tlb.load("someone/tiny").cfg.n_layers == 2


@pytest.mark.parametrize("host", hosts())
def test_a_gated_model_is_refused_and_named(host, tmp_path):
    with pytest.raises(NotBilinearError, match="layer 0 .* SiLU activation.*bilinearize"):
        tlb.load(save(tiny_llama("silu", mlp_bias=False), tmp_path / "silu"), host=host)


def test_sharded_folders_load(tmp_path):
    model = tiny_llama()
    model.save_pretrained(tmp_path / "sharded", max_shard_size="4KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    loaded = tlb.load(tmp_path / "sharded")
    tokens = torch.randint(0, 40, (1, 7))
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens), model(tokens).logits, rtol=1e-4, atol=1e-4)
    next((tmp_path / "sharded").glob("*-of-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="lacks the shards"):
        tlb.load(tmp_path / "sharded")


def test_names_that_are_neither_bundled_nor_a_folder(unchecked):
    with pytest.raises(CheckpointError, match=r"neither a bundled model \['stories-1l'"):
        tlb.load("no-such-model")
    with pytest.raises(ValueError, match='`host` must be "auto"'):
        tlb.load("stories-5l", host="nnsight")  # pyright: ignore[reportArgumentType]


def test_bundled_models_are_listed_with_card_licence_and_tokenizer():
    assert {"stories-5l", "stories-5l-swiglu"} <= set(tlb.bundled_models())
    for name in tlb.bundled_models():
        names = {path.name for path in (ZOO / name).iterdir()}
        assert {"README.md", "LICENSE", "tokenizer.json", "model.safetensors"} <= names


def test_the_swiglu_teacher_ships_and_loads_when_asked():
    with pytest.raises(NotBilinearError, match="SiLU"):
        tlb.load("stories-5l-swiglu")
    model = tlb.load("stories-5l-swiglu", check=False)
    assert model.cfg.n_layers == 5


def test_loading_is_repeatable_and_leaves_the_folder_alone(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    first, second = tlb.load(folder), tlb.load(folder)
    tokens = torch.randint(0, 40, (1, 5))
    with torch.no_grad():
        assert torch.equal(first(tokens), second(tokens))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_hooked_transformer_on_4_says_what_to_do(folder):
    if "hooked_transformer" in hosts():
        pytest.skip("TransformerLens 3.9 has HookedTransformer")
    with pytest.raises(ValueError, match=re.escape("TransformerLens 4.x has no HookedTransformer")):
        tlb.load(folder, host="hooked_transformer")
