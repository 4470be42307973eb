"""Our own format: what no transformers class can hold comes back bit for bit, or is refused."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import OWN_WEIGHTS, edit_settings, edit_weights, swap
from models import HostName, hosts, native, process_, word_tokenizer
from safetensors.torch import load_file
from test_native import boot

import tl_bilinear as tlb
from tl_bilinear.checkpoints.folder import CheckpointError
from tl_bilinear.hosts.from_plain import boot_plain
from tl_bilinear.hosts.settings import Settings
from tl_bilinear.hosts.to_plain import plain_model

TOKENS = torch.arange(36).reshape(2, 18)
ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 4}

KINDS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "LayerNorm": ("LN", {}),
    "LayerNorm, rotary": ("LN", ROTARY),
    "LayerNormPre": ("LNPre", {}),
    "RMSNorm, learned positions": ("RMS", {}),
    "RMSNormPre, learned positions": ("RMSPre", {}),
    "no norm": (None, {}),
    "GQA": ("LN", {"n_key_value_heads": 2}),
    "last norm RMS": ("LN", {"final_rms": True}),
    "square": ("LN", {"d_mlp": 16}),
    "part of the head rotated": ("RMS", {**ROTARY, "rotary_dim": 2}),
    "attention scale": ("RMS", {**ROTARY, "attn_scale": 3.0}),
    "softcaps": (
        "RMS",
        {**ROTARY, "attn_scores_soft_cap": 2.0, "output_logits_soft_cap": 3.0},
    ),
    "both directions": ("LN", {"attention_dir": "bidirectional"}),
    "another output vocabulary": ("LN", {"d_vocab_out": 11}),
}
HOOKED: dict[str, tuple[str | None, dict[str, Any]]] = {
    "shortformer": ("LN", {"positional_embedding_type": "shortformer"}),
    "local attention": (
        "LN",
        {"use_local_attn": True, "window_size": 3, "attn_types": ["local", "global"]},
    ),
    "scaled by layer": ("LN", {"scale_attn_by_inverse_layer_idx": True}),
    "unscaled attention": ("LN", {"use_attn_scale": False}),
    "rotary scaling": ("LN", {**ROTARY, "use_NTK_by_parts_rope": True}),
    "adjacent pairs": ("LN", {**ROTARY, "rotary_adjacent_pairs": True}),
}


def log_probabilities(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).log_softmax(-1)


def saved(tmp_path: Path, host: HostName | None = None, norm: str | None = "LN", **options) -> Path:
    model = native(norm, host or hosts()[0], torch.float32, **options)
    return tlb.save_pretrained(model, tmp_path / "saved")


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("kind", [*KINDS, *HOOKED])
def test_saved_is_loaded_bit_for_bit(host, kind, tmp_path):
    if kind in HOOKED and host != "hooked_transformer":
        pytest.skip("a native bridge does not have it, or not as an option")
    norm, options = {**KINDS, **HOOKED}[kind]
    model = native(norm, host, torch.float32, **options)
    folder = tlb.save_pretrained(model, tmp_path / "saved")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", OWN_WEIGHTS]
    again = tlb.load(folder)
    assert tlb.get_host(again).kind == tlb.get_host(model).kind
    assert torch.equal(log_probabilities(again), log_probabilities(model))
    assert tlb.get_host(again).model.cfg.default_prepend_bos == model.cfg.default_prepend_bos
    twice = tlb.save_pretrained(again, tmp_path / "twice")
    first, second = (load_file(path / OWN_WEIGHTS) for path in (folder, twice))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("norm", ["LN", "LNPre", "RMS", None])
def test_processed_and_edited_models_are_saved_as_they_stand(host, norm, tmp_path):
    model = native(norm, host, torch.float32)
    process_(model, host)
    with torch.no_grad():
        model.blocks[0].mlp.W_out.mul_(2)
        model.blocks[1].attn.W_O[1].zero_()
    again = tlb.load(tlb.save_pretrained(model, tmp_path / "saved"))
    torch.testing.assert_close(
        log_probabilities(again), log_probabilities(model), rtol=0, atol=1e-4
    )
    assert tlb.self_check(again).largest_error < 1e-5


@pytest.mark.parametrize("mlp_bias", [False, True])
def test_mlp_biases_of_native_bridges_come_back(mlp_bias, tmp_path):
    model = boot(mlp_bias=mlp_bias, normalization_type="LN")
    folder = tlb.save_pretrained(model, tmp_path / "saved")
    again = tlb.load(folder, host="transformer_bridge")
    assert torch.equal(log_probabilities(again), log_probabilities(model))
    assert ("blocks.0.mlp.b_gate" in load_file(folder / OWN_WEIGHTS)) == mlp_bias


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("host", hosts())
def test_other_dtypes_come_back_and_are_converted_when_asked(host, dtype, tmp_path):
    model = native("LN", host, dtype)
    again = tlb.load(tlb.save_pretrained(model, tmp_path / "saved"))
    assert tlb.get_host(again).dtype == dtype
    assert torch.equal(log_probabilities(again), log_probabilities(model))
    single = tlb.load(tmp_path / "saved", dtype=torch.float32)
    assert tlb.get_host(single).dtype == torch.float32


@pytest.mark.parametrize("source", hosts())
@pytest.mark.parametrize("target", hosts())
@pytest.mark.parametrize("kind", KINDS)
def test_either_host_computes_what_both_can_express(source, target, kind):
    """Halves that rotate together become pairs where a native bridge takes a HookedTransformer."""
    norm, options = KINDS[kind]
    model = native(norm, source, torch.float64, **options)
    other = boot_plain(plain_model(model), None, "other", target)
    # A native bridge's norms compute in float32.
    torch.testing.assert_close(
        log_probabilities(other), log_probabilities(model), rtol=0, atol=5e-6
    )


@pytest.mark.parametrize("kind", [kind for kind in HOOKED if kind != "adjacent pairs"])
def test_what_a_native_bridge_cannot_compute_is_refused(kind, tmp_path):
    if "hooked_transformer" not in hosts():
        pytest.skip("TransformerLens 4.x has no HookedTransformer")
    norm, options = HOOKED[kind]
    folder = saved(tmp_path, "hooked_transformer", norm, **options)
    with pytest.raises(ValueError, match="native.*cannot compute .*host='hooked_transformer'"):
        tlb.load(folder, host="transformer_bridge")


def test_transformers_refuses_the_folder_whole(tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

    folder = saved(tmp_path)
    for reader in (AutoConfig, AutoModelForCausalLM):
        with pytest.raises(ValueError, match="model type `tl_bilinear`"):
            reader.from_pretrained(folder, local_files_only=True)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        LlamaForCausalLM.from_pretrained(folder, local_files_only=True)


def test_the_tokenizer_is_saved(tmp_path):
    model = native("LN", hosts()[-1], torch.float32)
    tokenizers = word_tokenizer(tmp_path / "words")
    from transformers import AutoTokenizer

    plain = plain_model(model)
    model = boot_plain(plain, AutoTokenizer.from_pretrained(tokenizers), "words")
    again = tlb.load(tlb.save_pretrained(model, tmp_path / "saved"))
    assert again.to_tokens("two one three").tolist() == [[1, 4, 3, 5]]


def test_the_documented_shapes_are_those_of_the_file(tmp_path):
    folder = saved(tmp_path, n_key_value_heads=2)
    settings = json.loads((folder / "config.json").read_text())["settings"]
    stored = load_file(folder / OWN_WEIGHTS)
    expected = Settings(**settings).shapes()
    assert {name: tuple(value.shape) for name, value in stored.items()} == expected
    text = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
    named = [*settings, *(name.replace("blocks.0", "blocks.N") for name in expected)]
    assert all(f"`{name}`" in text for name in named if "blocks.1" not in name)


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: edit_weights(f, swap, OWN_WEIGHTS),
        lambda f: edit_settings(f, eps=1.0),
        lambda f: edit_settings(f, attn_scale=1.5),
    ],
    ids=["swapped", "eps", "attention scale"],
)
def test_a_model_that_is_no_longer_the_saved_one_is_noticed(damage, tmp_path):
    folder = saved(tmp_path)
    damage(folder)
    with pytest.raises(CheckpointError, match="log-probabilities differ from those that it was"):
        tlb.load(folder)
    assert tlb.load(folder, check=False).cfg.n_layers == 2


UNSAVEABLE = {
    "queries and keys normed": {"use_qk_norm": True},
    "parallel": {"parallel_attn_mlp": True},
}


@pytest.mark.parametrize("kind", UNSAVEABLE)
def test_what_our_format_cannot_hold_either_is_refused(kind, tmp_path):
    model = native("LN", hosts()[0], torch.float32, **UNSAVEABLE[kind])
    with pytest.raises(CheckpointError, match="no place for.*Nor can our own format.*no field for"):
        tlb.save_pretrained(model, tmp_path / "saved")
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import tl_bilinear as tlb
from models import hosts, native
from tl_bilinear.checkpoints import own_format
import safetensors.torch, torch
safetensors.torch.save_file = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
tlb.save_pretrained(native("LN", hosts()[0], torch.float32), Path({folder!r}), overwrite=True)
"""


@pytest.mark.one_major(4)
def test_a_process_that_dies_between_files_leaves_no_half_checkpoint(tmp_path):
    folder = saved(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (partial,) = tmp_path.glob(".saved.*.partial")  # it died with config.json written
    assert [path.name for path in partial.iterdir()] == ["config.json"]
