"""The wording of the five commonest errors: what was given, what is wrong, the way out."""

import pytest
import torch
from models import save, tiny_llama

import tl_bilinear as tlb

PROMPT = "Tim was sad because he lost"


def message(call) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


def test_a_gated_model_is_loaded(tmp_path):
    found = message(lambda: tlb.load(save(tiny_llama("silu", mlp_bias=False), tmp_path / "m")))
    assert found.startswith("layer 0 of this ")
    assert "does not compute a bilinear MLP of its weights (relative errors: on tokens" in found
    assert (
        "Likely cause: the gate has a SiLU activation: this is a gated model, not a bilinear one"
        in found
    )
    assert "Convert it first (tl_bilinear.bilinearize), or load it with check=False" in found


def test_a_name_is_misspelt(tmp_path):
    found = message(lambda: tlb.load("storys-5l"))
    assert found.startswith("'storys-5l' is neither a bundled model ['stories-1l', ")
    assert found.endswith("], nor a folder, nor a hub id (owner/name)")


def test_a_target_runs_into_the_prompt():
    model = tlb.load("stories-5l")
    found = message(lambda: tlb.attribute_modes(model, PROMPT + " hi", "s"))
    assert found == (
        "the target 's' merges with the end of the prompt 'd because he lost hi' into other "
        "tokens: begin the target with a space, or give a token id"
    )


def test_a_layer_is_out_of_range():
    found = message(lambda: tlb.get_host(tlb.load("stories-5l")).mlp_tensor(5))
    assert found == "`layer` 5 is out of range: this model has 5 layers (0-4)"


def test_factors_are_given_the_wrong_way_round(unchecked):
    found = message(
        lambda: tlb.BilinearTensor(torch.ones(64, 172), torch.ones(64, 172), torch.ones(172, 64))
    )
    assert found == (
        "`left`, `right` and `out` must share their last axis, the rank, got {'left': (64, 172), "
        "'right': (64, 172), 'out': (172, 64)}. TransformerLens stores W_out as [d_mlp, d_model]: "
        "pass W_out.T as `out`."
    )
