"""Loading: what is right loads exactly, what is wrong raises one clear error."""

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from models import cache, hosts, save, tiny_llama, word_tokenizer
from safetensors.torch import load_file, save_file

import tl_bilinear as tlb
from tl_bilinear import NotBilinearError
from tl_bilinear.checkpoints import memory
from tl_bilinear.checkpoints.bundled import ZOO
from tl_bilinear.checkpoints.folder import CheckpointError
from tl_bilinear.checkpoints.weight_files import WeightFiles


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tiny_llama(), tmp_path / "llama")


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, edit) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file({k: v.contiguous() for k, v in weights.items()}, path, {"format": "pt"})


GATE = "model.layers.1.mlp.gate_proj.weight"


def transpose(weights: dict) -> None:
    weights[GATE] = weights[GATE].T


def drop(weights: dict) -> None:
    del weights[GATE]


def poison(weights: dict) -> None:
    weights[GATE][0, 0] = float("nan")


def surplus(weights: dict) -> None:
    weights["model.layers.7.mlp.gate_proj.weight"] = torch.zeros(2, 2)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def corrupt_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


FAULTS = {
    "transposed": (
        lambda f: edit_weights(f, transpose),
        r"layers\.1\.mlp\.gate_proj\.weight has shape \[16, 24\], expected \[24, 16\] \(it is "
        "transposed",
    ),
    "missing": (lambda f: edit_weights(f, drop), r"layers\.1\.mlp\.gate_proj\.weight is missing"),
    "NaN": (lambda f: edit_weights(f, poison), r"layers\.1\.mlp\.gate_proj\.weight holds NaN"),
    "surplus": (lambda f: edit_weights(f, surplus), r"layers\.7.*has no place in this model"),
    "truncated": (
        truncate,
        r"cut or damaged, from model\.layers\.1\.\S+ on, fetch or write it again",
    ),
    "damaged header": (corrupt_header, "the file is cut or damaged"),
    "biases that would be dropped": (
        lambda f: edit_config(f, mlp_bias=False),
        'it would be dropped: set "mlp_bias": true',
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
    "no model_type": (lambda f: (f / "config.json").write_text("{}"), "has no `model_type`"),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "has no model.safetensors .nor .*: save the model with save_pretrained",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_folders_are_refused(fault, folder):
    damage, words = FAULTS[fault]
    damage(folder)
    with pytest.raises(CheckpointError, match=words):
        tlb.load(folder)


def as_torch(folder: Path, name: str = "pytorch_model.bin", **options) -> Path:
    """The folder with its weights in a torch file instead."""
    torch.save(load_file(folder / "model.safetensors"), folder / name, **options)
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_torch_files_load_as_safetensors_do(name, zipped, folder):
    tokens = torch.randint(0, 40, (1, 9))
    with torch.no_grad():
        expected = tlb.load(folder)(tokens)
        as_torch(folder, name, _use_new_zipfile_serialization=zipped)
        assert torch.equal(tlb.load(folder)(tokens), expected)
    assert tlb.get_host(tlb.load(folder, dtype=torch.bfloat16)).dtype == torch.bfloat16


class Bomb:
    """Pickled, it opens a file of the name it was given as soon as it is read."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


@pytest.mark.parametrize("kind", ["pickle", "torch", "torch, in a tensor's place"])
def test_a_pickle_bomb_executes_nothing(kind, folder, tmp_path):
    trace = tmp_path / "executed"
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(trace)))
    else:
        torch.save({GATE: Bomb(trace)} if "tensor" in kind else Bomb(trace), path)
    with pytest.raises(CheckpointError, match="it would run code, which is never done"):
        tlb.load(folder)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace))).close()  # the bomb is one: unpickled, it goes off
    assert trace.exists()


def torch_shards(folder: Path, shards: dict[str, list[str]], weight_map: dict) -> None:
    """The folder's weights spread over torch files, by name, behind an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for name, keys in shards.items():
        torch.save({key: weights[key] for key in keys}, folder / name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def split_names(folder: Path) -> tuple[list[str], list[str]]:
    names = sorted(load_file(folder / "model.safetensors"))
    return names[:9], names[9:]


def test_sharded_torch_files_load(folder):
    first, second = split_names(folder)
    tokens = torch.randint(0, 40, (1, 9))
    with torch.no_grad():
        expected = tlb.load(folder)(tokens)
        weight_map = dict.fromkeys(first, "a.bin") | dict.fromkeys(second, "b.bin")
        torch_shards(folder, {"a.bin": first, "b.bin": second}, weight_map)
        assert torch.equal(tlb.load(folder)(tokens), expected)


def held_twice(folder: Path) -> None:
    first, second = split_names(folder)
    weight_map = dict.fromkeys(first, "a.bin") | dict.fromkeys(second, "b.bin")
    torch_shards(folder, {"a.bin": first, "b.bin": [*second, first[0]]}, weight_map)


def escaping(name: str):
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        index = {"metadata": {}, "weight_map": {GATE: name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


def no_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')


def whole_checkpoint(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({"state_dict": weights, "step": 3}, folder / "model.pt")


def edit_torch(folder: Path, edit) -> None:
    as_torch(folder)
    path = folder / "pytorch_model.bin"
    weights = torch.load(path, weights_only=True)
    edit(weights)
    torch.save(weights, path)


def cut_torch(folder: Path) -> None:
    path = as_torch(folder) / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-500])


def whole_numbers(weights: dict) -> None:
    weights[GATE] = (weights[GATE] * 10).to(torch.int8)


STORED_FAULTS = {
    "torch, transposed": (lambda f: edit_torch(f, transpose), r"gate_proj\.weight has shape"),
    "torch, missing": (lambda f: edit_torch(f, drop), r"gate_proj\.weight is missing"),
    "torch, surplus": (lambda f: edit_torch(f, surplus), r"layers\.7.*has no place"),
    "torch, NaN": (lambda f: edit_torch(f, poison), r"gate_proj\.weight holds NaN"),
    "torch, cut": (cut_torch, "not a torch file of tensors alone"),
    "torch, a training state": (whole_checkpoint, "'state_dict' holds a .*Save the .* alone"),
    "held by two shards": (held_twice, r"lm_head\.weight is in a\.bin and in b\.bin"),
    "index escapes upwards": (escaping("../outside.safetensors"), "it is not followed"),
    "index escapes from the root": (escaping("/etc/passwd"), "it is not followed"),
    "index names the folder above": (escaping(".."), "it is not followed"),
    "index without names": (no_index, "is no index of shards"),
    "stored as whole numbers": (
        lambda f: edit_weights(f, whole_numbers),
        r"gate_proj\.weight is stored as torch\.\w*int8: quantised",
    ),
    "experts": (
        lambda f: edit_config(f, num_local_experts=8),
        "mixture of experts .num_local_experts 8.*Give a dense model",
    ),
    "4-bit": (
        lambda f: edit_config(f, quantization_config={"quant_method": "bitsandbytes"}),
        "quantised .bitsandbytes.*float32, bfloat16 or float16",
    ),
    "encoder-decoder": (
        lambda f: edit_config(f, model_type="t5", is_encoder_decoder=True),
        "encoder-decoder .t5. is no causal language model",
    ),
    "an encoder": (
        lambda f: edit_config(f, model_type="vit", architectures=["ViTModel"]),
        "transformers has no causal language model for",
    ),
    "a size that is no number": (
        lambda f: edit_config(f, hidden_size="sixteen"),
        "no causal language model for .*hidden_size",
    ),
    "an unknown class": (
        lambda f: edit_config(f, model_type="my_own_model"),
        "transformers has no causal language model for",
    ),
}


@pytest.mark.parametrize("fault", STORED_FAULTS)
def test_files_and_kinds_that_cannot_be_read_exactly_are_refused(fault, folder):
    damage, words = STORED_FAULTS[fault]
    damage(folder)
    with pytest.raises(CheckpointError, match=words):
        tlb.load(folder)


def test_a_checkpoint_larger_than_memory_fails_before_it_is_read(folder, monkeypatch, tmp_path):
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    meminfo.write_text("MemTotal: 99999999 kB\nMemAvailable: 20 kB\n")
    monkeypatch.setattr(WeightFiles, "read", None)
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
    with pytest.raises(CheckpointError, match=r"neither a bundled model \['stories-5l'"):
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
