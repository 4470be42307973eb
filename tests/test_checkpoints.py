"""Loading: what is right loads exactly, what is wrong raises one clear error."""

import json
import re
from pathlib import Path

import pytest
import torch
from models import hosts, save, tiny_llama
from safetensors.torch import load_file, save_file

import tl_bilinear as tlb
from tl_bilinear import NotBilinearError
from tl_bilinear.checkpoints.bundled import ZOO
from tl_bilinear.checkpoints.folder import CheckpointError


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
        "pickled weights are not read",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_folders_are_refused(fault, folder):
    damage, words = FAULTS[fault]
    damage(folder)
    with pytest.raises(CheckpointError, match=words):
        tlb.load(folder)


def test_a_pickle_is_never_opened(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    with pytest.raises(CheckpointError, match="pickled weights are not read"):
        tlb.load(folder)


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
