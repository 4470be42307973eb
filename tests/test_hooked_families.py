"""What HookedTransformer (3.9) can hold of each transformers class: exact, or refused with reason.

`test_families.py` takes every class through both hosts; here are the settings that a class may
have beside: windows, rotations, norms, precision, gates.
"""

import copy
import warnings
from typing import Any

import pytest
import torch
from families import BIASES, FAMILIES, bridge_of, family, hooked_of, log_probabilities, process_
from models import hosts, logits_of

import tl_bilinear as tlb
from tl_bilinear.checkpoints.folder import CheckpointError
from tl_bilinear.hosts.provenance import fingerprint

pytestmark = pytest.mark.skipif(
    "hooked_transformer" not in hosts(), reason="TransformerLens 4.x has no HookedTransformer"
)
TOKENS = torch.randint(0, 40, (3, 20), generator=torch.Generator().manual_seed(4))


def rope(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **options}}


def drift(model: Any, reference: Any) -> float:
    found, expected = (log_probabilities(m, TOKENS) for m in (model, reference))
    return float((found - expected).abs().max())


YARN = rope("yarn", factor=4.0, original_max_position_embeddings=16)
LLAMA3 = rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
SOME_WINDOWS = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
TWO_ROTATIONS = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
HELD: dict[str, tuple[str, dict[str, Any]]] = {
    "window everywhere": ("Mistral", {"sliding_window": 5}),
    "window everywhere, fused": ("Phi3", {"sliding_window": 5}),
    "window in some layers": ("Qwen2", SOME_WINDOWS),
    "window in some layers, norms on queries": ("Qwen3", SOME_WINDOWS),
    "no window": ("Gemma 3", {"layer_types": ["full_attention"] * 2}),
    "two rotations": (
        "Gemma 3",
        {
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 5,
            "rope_parameters": TWO_ROTATIONS,
        },
    ),
    "no softcaps": ("Gemma 2", {"final_logit_softcapping": None, "attn_logit_softcapping": None}),
    "wide heads": ("Qwen3", {"head_dim": 6}),
    "part of each head": ("Phi3", rope("default", partial_rotary_factor=0.5)),
    "linear scaling": ("Llama", rope("linear", factor=4.0)),
    "llama3 scaling": ("Llama", LLAMA3),
    "yarn scaling": ("Qwen3", YARN),
    "in parallel": ("StableLM", {"use_parallel_residual": True}),
}


@pytest.mark.parametrize("kind", HELD)
def test_settings_that_are_held_are_exact_and_attributed(kind):
    name, options = HELD[kind]
    reference = family(name, **options)
    model = hooked_of(copy.deepcopy(reference))
    tlb.self_check(model, reference=logits_of(reference))
    assert drift(model, reference) < 1e-4
    plain = {**options, "rope_parameters": None, "sliding_window": None, "layer_types": None}
    if kind not in ("wide heads", "no softcaps", "in parallel"):
        # The setting acts: without it the model is another one.
        known = {key: plain[key] for key in plain if key in options}
        known |= {"use_sliding_window": False} if "use_sliding_window" in options else {}
        known |= {"sliding_window": 64} if name.startswith("Gemma") else {}
        other = family(name, **{**options, **known})
        assert drift(other, reference) > 1e-2
    parts = tlb.attribute_components(model, TOKENS, 5)
    assert parts.discrepancy.abs().max() < 1e-5
    process_(model, "folded")
    assert drift(model, reference) < 1e-4


LONGROPE = {"short_factor": [1.0, 1.0], "long_factor": [2.0, 2.0]}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "longrope": ("Phi3", rope("longrope", **LONGROPE), "rotary scaling .*longrope"),
    "dynamic": ("Llama", rope("dynamic", factor=4.0), "rotary scaling .*dynamic"),
    "LayerNorms on queries": ("StableLM", {"qk_layernorm": True}, "LayerNorms on queries"),
    "wide queries": ("OLMo2", {"head_dim": 6}, "queries are 24 wide and its stream 16"),
    "both ways": ("Gemma 3", {"use_bidirectional_attention": True}, "reads later positions"),
    "unknown gate": ("Llama", {"hidden_act": "mish"}, "activation Mish.* is not known"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_it_cannot_hold_is_refused_with_the_reason_and_the_way_out(kind):
    name, options, words = REFUSED[kind]
    with pytest.raises(ValueError, match=rf'cannot hold this \w+: .*{words}.*host="transformer_b'):
        hooked_of(family(name, **options))


def test_other_classes_are_refused():
    from transformers import OlmoConfig, OlmoForCausalLM

    olmo = OlmoForCausalLM(
        OlmoConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=4,
            vocab_size=40,
            hidden_act="linear",
        )
    )
    with pytest.raises(ValueError, match="OlmoForCausalLM: .*these classes only: Llama, Mistral"):
        hooked_of(olmo)


def test_a_rotation_that_is_read_wrongly_is_noticed(monkeypatch):
    """The settings are compared with the built module: here the scaling is dropped."""
    from tl_bilinear.hosts.hooked import rotary

    monkeypatch.setattr(rotary, "_scaling", lambda model, rope: {"rotary_base": 500.0})
    for options in (LLAMA3, YARN, rope("linear", factor=4.0)):
        with pytest.raises(ValueError, match="rotary scaling"):
            hooked_of(family("Llama", **options))


@pytest.mark.parametrize("name", ["Qwen3", "Gemma 2", "GLM", "OLMo2", "StableLM"])
def test_other_precisions_and_gates(name):
    reference = family(name, **BIASES.get(name, {})).double()
    model = hooked_of(copy.deepcopy(reference))
    assert tlb.self_check(model, reference=logits_of(reference)).largest_error < 1e-9
    assert drift(model, reference) < 1e-5  # transformers rotates and normalises in float32
    half = family(name).bfloat16()
    tlb.self_check(hooked_of(copy.deepcopy(half)), reference=logits_of(half))
    gated = family(name, "gelu_pytorch_tanh")
    model = hooked_of(copy.deepcopy(gated))
    assert drift(model, gated) < 1e-4
    with pytest.raises(tlb.NotBilinearError, match="GELU activation"):
        tlb.self_check(model)


@pytest.mark.parametrize("name", FAMILIES)
def test_both_hosts_of_a_model_agree_on_what_it_is(name):
    """Log-probabilities, fingerprint, default for BOS, norms, caps, and every part of a logit."""
    source = family(name, **BIASES.get(name, {}))
    hooked = tlb.get_host(hooked_of(copy.deepcopy(source)))
    tlb.self_check(hooked, reference=logits_of(source))
    assert drift(hooked.model, source) < 1e-4
    bridge = tlb.get_host(bridge_of(copy.deepcopy(source), name))
    assert fingerprint(hooked) == fingerprint(bridge)
    assert hooked.model.cfg.default_prepend_bos == bridge.model.cfg.default_prepend_bos
    assert hooked.logit_softcap == bridge.logit_softcap
    for of in ("mlp_norm", "mlp_post_norm", "attention_post_norm"):
        mine, other = getattr(hooked, of)(1), getattr(bridge, of)(1)
        assert (mine.exists, mine.centred) == (other.exists, other.centred)
        if mine.exists:
            assert torch.equal(mine.gain, other.gain)
    ours = tlb.attribute_components(hooked, TOKENS, 5)
    theirs = tlb.attribute_components(bridge, TOKENS, 5)
    for part in ("embedding", "heads", "mlps", "target"):
        torch.testing.assert_close(getattr(ours, part), getattr(theirs, part), rtol=1e-4, atol=1e-5)


# After processing: biases and norms that the class has no place for.
AS_A_LLAMA = {"Qwen2"}
IN_OUR_FORMAT = {"GLM", "StableLM"}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_edited_weights_are_saved_in_their_own_class(name, tied, tmp_path):
    from transformers import AutoModelForCausalLM

    source = family(name, tie_word_embeddings=tied, **BIASES.get(name, {}))
    model = hooked_of(copy.deepcopy(source))
    with torch.no_grad():
        model.blocks[1].mlp.W_out[::2] *= -1  # not all: a norm behind would not see it
    folder = tlb.save_pretrained(model, tmp_path / "saved")
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(plain) is type(source) and plain.config.tie_word_embeddings == tied
    assert drift(model, plain) < 1e-4 < drift(model, source)
    again = tlb.load(folder, host="hooked_transformer")
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_processed_weights_are_saved(name, tmp_path):
    from transformers import AutoModelForCausalLM

    source = family(name, **BIASES.get(name, {}))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not support", UserWarning)
        model = process_(hooked_of(copy.deepcopy(source)), "folded")
    folder = tlb.save_pretrained(model, tmp_path / "saved")
    assert drift(tlb.load(folder), source) < 1e-4
    if name in IN_OUR_FORMAT:
        assert (folder / "tl_model.safetensors").is_file()
        return
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert (type(plain) is type(source)) == (name not in AS_A_LLAMA)
    assert drift(plain, source) < 1e-4


def test_a_bias_without_a_place_is_not_lost(tmp_path):
    """Gemma 2 has no biases in its MLP, a Llama no softcap, our format no norms behind."""
    model = hooked_of(family("Gemma 2"))
    with torch.no_grad():
        model.blocks[0].mlp.b_out.add_(0.5)
    with pytest.raises(CheckpointError, match="no place for blocks.0.mlp.b_out.*Nor can our own"):
        tlb.save_pretrained(model, tmp_path / "saved")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"sliding_window": 5}, LLAMA3], ids=str)
def test_windows_and_scaled_rotations_are_saved(options, tmp_path):
    source = family("Mistral", **options)
    folder = tlb.save_pretrained(hooked_of(copy.deepcopy(source)), tmp_path / "saved")
    assert drift(tlb.load(folder), source) < 1e-4


def test_yarn_is_saved_in_its_own_class_only(tmp_path):
    source = family("Mistral", **YARN)
    model = hooked_of(copy.deepcopy(source))
    assert drift(tlb.load(tlb.save_pretrained(model, tmp_path / "saved")), source) < 1e-4
    with torch.no_grad():
        model.blocks[0].attn.b_O.add_(0.5)
    with pytest.raises(CheckpointError, match="no place for: rotary scaling.*Nor can our own"):
        tlb.save_pretrained(model, tmp_path / "other")


def test_processing_leaves_out_what_would_change_the_model():
    model = hooked_of(family("OLMo2"))
    with pytest.warns(UserWarning, match="Olmo2ForCausalLM does not support fold_ln, center_wri"):
        model.process_weights_()
    capped = hooked_of(family("Gemma 2"))
    with pytest.warns(UserWarning, match="Gemma2ForCausalLM does not support center_unembed"):
        capped.process_weights_()
