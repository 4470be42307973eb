"""Saving: what transformers loads is what TransformerLens computed, and it is all or nothing."""

from pathlib import Path

import pytest
import torch
from models import HostName, hosts, native, process_, save, tiny_llama, word_tokenizer
from safetensors.torch import load_file

import tl_bilinear as tlb
from tl_bilinear.checkpoints.folder import CheckpointError
from tl_bilinear.hosts.boot import boot

TOKENS = torch.arange(36).reshape(2, 18)

SHAPES = {
    "biases and GQA": {},
    "no biases": {"mlp_bias": False, "attention_bias": False},
    "all heads": {"num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True},
    "d_head not d_model / n_heads": {"head_dim": 6},
    "rotary base": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "gated": {"hidden_act": "silu", "mlp_bias": False},
}


def log_probabilities(model, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        out = model(tokens)
    return getattr(out, "logits", out).log_softmax(-1)


def in_transformers(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()


def booted(tmp_path: Path, host: HostName, **options):
    return tlb.load(save(tiny_llama(**options), tmp_path / "source"), host=host, check=False)


def require_same(folder: Path, model, host: HostName, check: bool = True) -> None:
    """Plain transformers, and `load`, compute what the model computes."""
    expected = log_probabilities(model)
    torch.testing.assert_close(
        log_probabilities(in_transformers(folder)), expected, rtol=0, atol=1e-4
    )
    again = tlb.load(folder, host=host, check=check)
    torch.testing.assert_close(log_probabilities(again), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("shape", SHAPES)
def test_saved_is_loaded_exactly(host, shape, tmp_path):
    model = booted(tmp_path, host, **SHAPES[shape])
    folder = tlb.save_pretrained(model, tmp_path / "saved")
    check = shape != "gated"
    again = tlb.load(folder, host=host, check=check)
    assert torch.equal(log_probabilities(again), log_probabilities(model))
    require_same(folder, model, host, check)
    source = load_file(tmp_path / "source" / "model.safetensors")
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() == source.keys()  # grouped heads grouped, tied embeddings tied
    assert all(torch.equal(stored[name], source[name]) for name in source)


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("shape", ["biases and GQA", "no biases", "tied"])
def test_folded_models_keep_their_log_probabilities(host, shape, tmp_path):
    model = booted(tmp_path, host, **SHAPES[shape])
    process_(model, host)
    folder = tlb.save_pretrained(model, tmp_path / "saved")
    require_same(folder, model, host)
    stored = load_file(folder / "model.safetensors")
    assert stored["model.layers.0.mlp.gate_proj.weight"].shape == (24, 16)
    gains = [value for name, value in stored.items() if "norm" in name]
    assert gains and all(torch.equal(gain, torch.ones(16)) for gain in gains)
    assert "lm_head.weight" in stored  # the final gain is in it: no longer the embedding


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("processed", [False, True], ids=["raw", "processed"])
def test_edits_in_place_are_saved(host, processed, tmp_path):
    model = booted(tmp_path, host)
    if processed:
        process_(model, host)
    before = log_probabilities(model)
    with torch.no_grad():
        model.blocks[0].mlp.W_out.mul_(2)
        model.blocks[1].attn.W_O[1].zero_()
        model.blocks[1].mlp.W_gate[:, 3] += 0.5
    assert (log_probabilities(model) - before).abs().max() > 0.1
    require_same(tlb.save_pretrained(model, tmp_path / "saved"), model, host)


@pytest.mark.parametrize("host", hosts())
def test_editing_one_of_two_tied_matrices_unties_them(host, tmp_path):
    model = booted(tmp_path, host, tie_word_embeddings=True)
    with torch.no_grad():
        if host == "hooked_transformer":
            model.unembed.W_U.mul_(2)
        else:
            model.unembed.weight = torch.nn.Parameter(2 * model.unembed.weight)
    folder = tlb.save_pretrained(model, tmp_path / "saved")
    require_same(folder, model, host)
    assert "lm_head.weight" in load_file(folder / "model.safetensors")


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("norm", ["RMS", "RMSPre"])
@pytest.mark.parametrize(
    "options",
    [{}, {"n_key_value_heads": 2}, {"rotary_adjacent_pairs": True}],
    ids=["all heads", "GQA", "adjacent pairs"],
)
def test_native_models_become_llamas(host, norm, options, tmp_path):
    """A native bridge rotates adjacent pairs always, a Llama never: queries and keys move."""
    settings = {"positional_embedding_type": "rotary", "rotary_dim": 4, **options}
    model = native(norm, host, torch.float32, **settings)
    with torch.no_grad():
        tlb.get_host(model).b_U.zero_()
    folder = tlb.save_pretrained(model, tmp_path / "saved")
    require_same(folder, model, host)


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_round_trip_exactly(host, dtype, tmp_path):
    source = tiny_llama().to(dtype)
    model = tlb.load(save(source, tmp_path / "source"), host=host)
    assert tlb.get_host(model).dtype == dtype
    again = tlb.load(tlb.save_pretrained(model, tmp_path / "saved"), host=host)
    assert tlb.get_host(again).dtype == dtype
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    expected = load_file(tmp_path / "source" / "model.safetensors")
    assert all(torch.equal(stored[name], expected[name]) for name in expected)


def of_class(family: str):
    """A tiny random bilinear model of another transformers class, biases and gains included."""
    import transformers

    torch.manual_seed(0)
    act = "hidden_activation" if family == "Gemma2" else "hidden_act"
    config = getattr(transformers, family + "Config")(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        vocab_size=40,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=0,
        **{act: "linear"},
    )
    model = getattr(transformers, family + "ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("family", ["Mistral", "Qwen2", "Gemma2"])
@pytest.mark.parametrize("processed", [False, True], ids=["raw", "processed"])
def test_bridges_of_other_classes_keep_their_class(family, processed, tmp_path):
    original = of_class(family)
    expected = log_probabilities(original)
    bridge = boot(original, None, family, "transformer_bridge")
    if processed:
        process_(bridge, "transformer_bridge")
    saved = in_transformers(tlb.save_pretrained(bridge, tmp_path / "saved"))
    # Folding moves the value biases into an output bias, which Qwen2 does not have and Llama has.
    kept = not (processed and family == "Qwen2")
    assert type(saved).__name__ == (family if kept else "Llama") + "ForCausalLM"
    torch.testing.assert_close(log_probabilities(saved), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("host", hosts())
def test_the_tokenizer_is_saved(host, tmp_path):
    model = tlb.load(word_tokenizer(save(tiny_llama(), tmp_path / "source")), host=host)
    tokens = model.to_tokens("two one three")
    assert tokens.tolist() == [[1, 4, 3, 5]]
    folder = tlb.save_pretrained(model, tmp_path / "saved")
    again = tlb.load(folder, host=host)
    assert torch.equal(again.to_tokens("two one three"), tokens)
    assert torch.equal(log_probabilities(again), log_probabilities(model))


@pytest.mark.parametrize("host", hosts())
def test_a_hook_is_no_weight_and_is_noticed(host, tmp_path):
    model = booted(tmp_path, host)
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda value, hook: 2 * value)]):
        with pytest.raises(CheckpointError, match="would differ by .*reset_hooks"):
            tlb.save_pretrained(model, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    tlb.save_pretrained(model, tmp_path / "saved")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_existing_folders_are_replaced_only_when_asked(tmp_path):
    model = booted(tmp_path, hosts()[0])
    folder = tmp_path / "source"
    (folder / "notes.txt").write_text("mine")
    before = contents(folder)
    with pytest.raises(CheckpointError, match="is not empty: .*overwrite=True"):
        tlb.save_pretrained(model, folder)
    assert contents(folder) == before
    tlb.save_pretrained(model, folder, overwrite=True)
    assert not (folder / "notes.txt").exists()
    (tmp_path / "empty").mkdir()
    tlb.save_pretrained(model, tmp_path / "empty")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("mine")
    with pytest.raises(CheckpointError, match="is no checkpoint .*would delete"):
        tlb.save_pretrained(model, tmp_path / "home", overwrite=True)
    with pytest.raises(CheckpointError, match="is a file"):
        tlb.save_pretrained(model, tmp_path / "home" / "thesis.tex", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "home", "source"]


@pytest.mark.parametrize("step", ["weights", "rename"])
def test_a_failed_save_leaves_the_old_folder_and_nothing_else(step, tmp_path, monkeypatch):
    from transformers import LlamaForCausalLM

    model = booted(tmp_path, hosts()[0])
    folder = tmp_path / "source"
    before = contents(folder)

    def half_written(self, path, **kwargs):
        (Path(path) / "config.json").write_text("{")
        raise OSError("no space left on device")

    def refused(self, target):
        if self.name.endswith(".partial"):
            raise OSError("no permission")
        return rename(self, target)

    rename = Path.rename
    if step == "weights":
        monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", half_written)
    else:
        monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="no space|no permission"):
        tlb.save_pretrained(model, folder, overwrite=True)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
