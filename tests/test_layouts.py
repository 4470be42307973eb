"""Layouts that transformers has no class for, against plain PyTorch written from the description.

The reference below knows nothing of tl_bilinear: it is the forward pass that the authors of
tdooms/ts-* and tdooms/fw-* describe, on the tensors as they store them.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from damage import edit_config, edit_weights
from models import cache, hosts, process_, save, tiny_llama, word_tokenizer
from safetensors.torch import load_file, save_file

import tl_bilinear as tlb
from tl_bilinear.checkpoints.folder import CheckpointError
from tl_bilinear.checkpoints.layouts import find_layout, layouts

D, HIDDEN, HEADS, LAYERS, VOCAB = 16, 24, 4, 3, 40
CONFIG = {
    "architectures": ["Transformer"],
    "n_head": HEADS,
    "n_layer": LAYERS,
    "n_ctx": 64,
    "d_model": D,
    "d_hidden": HIDDEN,
    "bilinear": True,
    "gate": None,
    "bias": False,
    "normalization": True,
}


def tdooms_weights(*, biased: bool = False, older: bool = False) -> dict[str, torch.Tensor]:
    """Random tensors under the names of a packed file; `older`: MLP.o and norm weights."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> torch.Tensor:
        return 0.4 * torch.randn(shape, generator=generator)

    weights = {"transformer.wte.weight": random(VOCAB, D), "lm_head.weight": random(VOCAB, D)}
    for i in range(LAYERS):
        at = f"transformer.h.{i}."
        shapes = {
            "attn.qkv": (3 * D, D),
            "attn.o": (D, D),
            "mlp.w": (2 * HIDDEN, D),
            "mlp.o" if older else "mlp.p": (D, HIDDEN),
        }
        for name, shape in shapes.items():
            weights[f"{at}{name}.weight"] = random(*shape)
            if biased:
                weights[f"{at}{name}.bias"] = random(shape[0])
        weights[at + "attn.rotary.inv_freq"] = 10000.0 ** (-torch.arange(0, 4, 2) / 4)
        if older:
            for norm in ("n1", "n2"):
                weights[f"{at}{norm}.weight"] = 1 + random(D)
                weights[f"{at}{norm}.bias"] = random(D)
    if older:
        weights["transformer.n_f.weight"] = 1 + random(D)
        weights["transformer.n_f.bias"] = torch.zeros(D)
    return weights


def tdooms_logits(weights: dict, config: dict, tokens: torch.Tensor) -> torch.Tensor:
    """The model as its authors describe it, in the weights' dtype."""
    w = weights
    zero = torch.zeros(())

    def norm(x, name):
        x = x / (x.square().mean(-1, keepdim=True) + 1e-8).sqrt()
        return x * w.get(name + ".weight", zero + 1) + w.get(name + ".bias", zero)

    def linear(x, name):
        return x @ w[name + ".weight"].T + w.get(name + ".bias", zero)

    d_head = config["d_model"] // config["n_head"]
    pos = tokens.shape[1]
    frequency = 10000.0 ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    angle = torch.arange(pos, dtype=torch.float64)[:, None] * frequency
    cos, sin = (
        torch.cat([f(angle)] * 2, -1).to(w["lm_head.weight"]) for f in (torch.cos, torch.sin)
    )

    def rotate(x):  # [batch, head, pos, d_head]
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    scale = 1 / math.sqrt(2 * config["n_layer"]) if config.get("scale_attn", True) else 1.0
    x = w["transformer.wte.weight"][tokens]
    for i in range(config["n_layer"]):
        at = f"transformer.h.{i}."
        qkv = linear(norm(x, at + "n1"), at + "attn.qkv").chunk(3, -1)
        q, k, v = (y.unflatten(-1, (config["n_head"], d_head)).transpose(1, 2) for y in qkv)
        scores = rotate(q) @ rotate(k).transpose(-1, -2) / math.sqrt(d_head)
        scores = scores.masked_fill(torch.ones(pos, pos).triu(1).bool(), -torch.inf)
        z = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + scale * linear(z, at + "attn.o")
        left, right = linear(norm(x, at + "n2"), at + "mlp.w").chunk(2, -1)
        down = "mlp.o" if at + "mlp.o.weight" in w else "mlp.p"
        x = x + linear(left * right, at + down)
    return norm(x, "transformer.n_f") @ w["lm_head.weight"].T


def write(folder: Path, weights: dict, **changes) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors")
    return folder


VARIANTS = {
    "scaled attention": ({}, {}),
    "scale_attn false": ({}, {"scale_attn": False}),
    "biases": ({"biased": True}, {"bias": True}),
    "older files": ({"older": True}, {"scale_attn": False}),
    "older files with biases": ({"older": True, "biased": True}, {"bias": True}),
}


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("processed", [False, True], ids=["raw", "processed"])
def test_packed_files_equal_the_description(host, variant, processed, tmp_path):
    kind, changes = VARIANTS[variant]
    weights = tdooms_weights(**kind)
    model = tlb.load(write(tmp_path / "packed", weights, **changes), host=host)
    if processed:
        process_(model, host)
    tokens = torch.randint(0, VOCAB, (2, 20))
    expected = tdooms_logits(weights, {**CONFIG, **changes}, tokens).log_softmax(-1)
    with torch.no_grad():
        found = model(tokens).log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert tlb.self_check(model).largest_error < 1e-5


def test_the_reference_notices_a_wrong_scale(tmp_path):
    """The check above can fail: with the other scale the log-probabilities are far apart."""
    weights = tdooms_weights()
    model = tlb.load(write(tmp_path / "packed", weights))
    tokens = torch.randint(0, VOCAB, (2, 20))
    other = tdooms_logits(weights, {**CONFIG, "scale_attn": False}, tokens).log_softmax(-1)
    with torch.no_grad():
        assert (model(tokens).log_softmax(-1) - other).abs().max() > 0.1


def test_a_packed_file_in_float64_is_exact_to_its_norms(tmp_path):
    """transformers' RMSNorm computes in float32; the weights themselves keep float64."""
    weights = {k: v.double() for k, v in tdooms_weights().items()}
    model = tlb.load(write(tmp_path / "packed", weights))
    o = weights["transformer.h.0.attn.o.weight"] / math.sqrt(2 * LAYERS)
    found = tlb.get_host(model).W_O(0)
    torch.testing.assert_close(found.flatten(0, 1).T, o, rtol=1e-15, atol=0)


def test_a_packed_torch_file_equals_the_safetensors_one(tmp_path):
    weights = tdooms_weights()
    first = tlb.load(write(tmp_path / "safe", weights))
    folder = write(tmp_path / "torch", weights)
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    second = tlb.load(folder)
    tokens = torch.randint(0, VOCAB, (1, 9))
    with torch.no_grad():
        assert torch.equal(first(tokens), second(tokens))


def test_a_packed_swiglu_is_named_as_what_it_is(tmp_path):
    folder = write(tmp_path / "packed", tdooms_weights(), gate="silu")
    with pytest.raises(tlb.NotBilinearError, match="SiLU activation"):
        tlb.load(folder)


def test_a_tokenizer_that_is_only_named_comes_from_the_hub(tmp_path, monkeypatch):
    weights = tdooms_weights()
    cache(tmp_path / "cache", "tdooms/ts-tokenizer-4096", word_tokenizer, monkeypatch)
    model = tlb.load(write(tmp_path / "first", weights, tokenizer="ts-4096"))
    assert model.to_tokens("two one").tolist() == [[1, 4, 3]]
    folder = write(tmp_path / "second", weights, tokenizer="mistral")
    with pytest.warns(UserWarning, match="without its tokenizer: 'mistral-community/Mixtral"):
        assert tlb.load(folder).tokenizer is None


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_packed_model_loads_by_its_hub_id(host, file, tmp_path, monkeypatch):
    weights = tdooms_weights()

    def fill(folder: Path) -> None:
        write(tmp_path / "made", weights)
        (tmp_path / "made" / "config.json").rename(folder / "config.json")
        if file == "model.safetensors":
            (tmp_path / "made" / file).rename(folder / file)
        else:
            torch.save(weights, folder / file)

    cache(tmp_path / "cache", "tdooms/fw-none", fill, monkeypatch)
    model = tlb.load("tdooms/fw-none", host=host)
    assert model.cfg.model_name == "tdooms/fw-none"
    tokens = torch.randint(0, VOCAB, (2, 20))
    expected = tdooms_logits(weights, CONFIG, tokens).log_softmax(-1)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).log_softmax(-1), expected, rtol=0, atol=1e-4)


O_PROJ = "transformer.h.1.attn.o.weight"


def five_parts(weights: dict) -> None:
    weights["transformer.h.0.attn.qkv.weight"] = torch.zeros(5 * D, D)


def other_base(weights: dict) -> None:
    weights["transformer.h.0.attn.rotary.inv_freq"] = 500.0 ** (-torch.arange(0, 4, 2) / 4)


def head_bias(weights: dict) -> None:
    weights["lm_head.bias"] = torch.ones(VOCAB)


def final_bias(weights: dict) -> None:
    weights["transformer.n_f.bias"] = torch.ones(D)


PACKED_FAULTS = {
    "no norms": (
        lambda f: edit_config(f, normalization=False),
        "normalization is False.*norm-free",
    ),
    "unknown norm": (lambda f: edit_config(f, normalization="batch"), "normalization is 'batch'"),
    "unknown gate": (lambda f: edit_config(f, gate="mish"), "gate is 'mish'.*no Llama activation"),
    "no gate at all": (lambda f: edit_config(f, bilinear=False), "bilinear is False"),
    "unknown scale": (lambda f: edit_config(f, scale_attn=0.3), "scale_attn is 0.3"),
    "no sizes": (lambda f: edit_config(f, d_hidden=None), r"whole number for \['d_hidden'\]"),
    "odd heads": (lambda f: edit_config(f, n_head=5), "does not divide into 5 heads"),
    "other name": (
        lambda f: edit_config(f, architectures=["Transformer2"]),
        r"no `model_type`.*no layout recognises it \(packed: ",
    ),
    "missing": (
        lambda f: edit_weights(f, lambda w: w.pop(O_PROJ)),
        r"h\.1\.attn\.o\.weight is miss",
    ),
    "squared attention": (
        lambda f: edit_weights(f, five_parts),
        r"attn\.qkv\.weight has shape \[80, 16\], expected \[48, 16\]",
    ),
    "surplus": (lambda f: edit_config(f, n_layer=2), r"transformer\.h\.2\.\S+ has no place"),
    "other rotation": (lambda f: edit_weights(f, other_base), "not a rotation with base 10000"),
    "head bias": (lambda f: edit_weights(f, head_bias), r"lm_head\.bias is not zero"),
    "final norm's bias": (lambda f: edit_weights(f, final_bias), r"n_f\.bias is not zero"),
}


@pytest.mark.parametrize("fault", PACKED_FAULTS)
def test_packed_files_that_no_llama_equals_are_refused(fault, tmp_path):
    folder = write(tmp_path / "packed", tdooms_weights())
    damage, words = PACKED_FAULTS[fault]
    damage(folder)
    with pytest.raises(CheckpointError, match=words):
        tlb.load(folder)


SPLIT_NAMES = [("left", "right", "down"), ("w_left", "w_right", "w_out")]


def split(folder: Path, names: tuple[str, str, str] = SPLIT_NAMES[0], **changes) -> Path:
    """A tiny Llama's folder with its MLPs renamed."""
    save(tiny_llama(), folder)

    def rename(weights: dict) -> None:
        for old, new in zip(("gate_proj", "up_proj", "down_proj"), names, strict=True):
            for name in [name for name in weights if f".mlp.{old}." in name]:
                weights[name.replace(old, new)] = weights.pop(name)

    edit_weights(folder, rename)
    edit_config(folder, **changes)
    return folder


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("names", SPLIT_NAMES, ids=["left", "w_left"])
def test_split_files_equal_the_llama_they_were_made_of(host, names, tmp_path):
    model = tlb.load(split(tmp_path / "split", names, hidden_act=None), host=host)
    tokens = torch.randint(0, 40, (2, 20))
    with torch.no_grad():
        expected = tiny_llama()(tokens).logits
        torch.testing.assert_close(model(tokens), expected, rtol=1e-4, atol=1e-4)


def test_split_files_without_a_model_type_load(tmp_path):
    folder = split(tmp_path / "split")
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config))
    assert tlb.load(folder).cfg.n_layers == 2


def both_kinds(weights: dict) -> None:
    weights["model.layers.0.mlp.gate_proj.weight"] = torch.zeros(24, 16)


def two_downs(weights: dict) -> None:
    weights["model.layers.0.mlp.out.weight"] = torch.zeros(16, 24)


SPLIT_FAULTS = {
    "gate beside left": (lambda f: edit_weights(f, both_kinds), "which matrices count is ambig"),
    "two outputs": (lambda f: edit_weights(f, two_downs), r"found \['down', 'out'\]: .*ambiguous"),
    "an activation": (lambda f: edit_config(f, hidden_act="silu"), "hidden_act is 'silu'"),
    "heads that do not divide": (
        lambda f: edit_config(f, num_attention_heads=5, head_dim=None),
        "gives no Llama configuration .*heads",
    ),
    "another class": (lambda f: edit_config(f, model_type="mistral"), "model_type is 'mistral'"),
    "no sizes": (lambda f: edit_config(f, hidden_size=None), r"lacks \['hidden_size'\]"),
    "missing": (
        lambda f: edit_weights(f, lambda w: w.pop("model.layers.1.mlp.right.weight")),
        r"model\.layers\.1\.mlp\.up_proj\.weight is missing",
    ),
}


@pytest.mark.parametrize("fault", SPLIT_FAULTS)
def test_split_files_that_are_ambiguous_or_damaged_are_refused(fault, tmp_path):
    folder = split(tmp_path / "split")
    damage, words = SPLIT_FAULTS[fault]
    damage(folder)
    with pytest.raises(CheckpointError, match=words):
        tlb.load(folder)


def test_layouts_are_told_apart_by_config_and_names_alone():
    assert [layout.name for layout in layouts()] == ["packed", "split"]
    packed = {"transformer.wte.weight", "transformer.h.0.attn.qkv.weight"}
    mlp = "model.layers.0.mlp."
    halves = {mlp + "left.weight", mlp + "right.weight"}
    found = find_layout({"architectures": ["Transformer"]}, packed)
    assert found is not None and found.name == "packed"
    assert find_layout({"model_type": "llama"}, {mlp + "gate_proj.weight"}) is None
    with pytest.raises(CheckpointError, match=r"layouts \['packed', 'split'\] both claim"):
        find_layout({"architectures": ["Transformer"]}, packed | halves)


def test_the_stored_folder_is_left_alone(tmp_path):
    folder = write(tmp_path / "packed", tdooms_weights())
    before = load_file(folder / "model.safetensors")
    tlb.load(folder)
    after = load_file(folder / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
