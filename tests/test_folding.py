"""TransformerLens' weight processing of bilinear models: exact, or refused; never wrong."""

import copy

import pytest
import torch
from families import BIASES, bridge_of, family, hooked_of
from models import hosts, native, process_, tiny_llama

import tl_bilinear as tlb
from tl_bilinear.hosts.folding import FoldingError

NORMS = ("LN", "RMS", "LNPre", "RMSPre", None)
SHAPES = {
    "d_mlp above d_model": {},
    "d_mlp equal to d_model": {"d_mlp": 16},
    "d_mlp below d_model": {"d_mlp": 12},
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 4},
    "GQA": {"n_key_value_heads": 2},
    "final_rms": {"final_rms": True},
    "square unembedding": {"d_vocab": 16},
}
FLAGS = (
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
)


def drift(model, change) -> float:
    """Largest change of a log-probability; the model must still be what its weights say."""
    tokens = torch.randint(
        0, model.cfg.d_vocab, (2, 12), generator=torch.Generator().manual_seed(2)
    )
    with torch.no_grad():
        before = model(tokens).double().log_softmax(-1)
        change(model)
        after = model(tokens).double().log_softmax(-1)
    tlb.self_check(model)
    return float((after - before).abs().max())


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_processing_is_exact_or_refused(host, norm, shape):
    model = native(norm, host, torch.float32, **SHAPES[shape])
    try:
        assert drift(model, lambda m: process_(m, host)) < 1e-4
    except FoldingError as error:
        # Only these shapes may be refused (docs/upstream.md), whatever the version.
        assert shape in ("final_rms", "square unembedding")
        assert ("final RMSNorm" if shape == "final_rms" else "square unembedding") in str(error)
        assert "load it again" in str(error)


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("norm", ["LN", "RMS", "RMSPre"])
def test_rounding_float64_is_not_taken_for_centring(host, norm):
    """Processing rounds W_out to float32, which once made us centre it behind an RMSNorm."""
    model = native(norm, host)
    assert drift(model, lambda m: process_(m, host)) < 1e-5


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("norm", ["LN", "RMS"])
@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("d_mlp", [24, 16])
def test_every_processing_step_alone_is_exact(host, norm, flag, d_mlp):
    model = native(norm, host, torch.float32, d_mlp=d_mlp)
    before = parameters(model)
    assert drift(model, lambda m: process_alone_(m, flag)) < 1e-4
    after = parameters(model)
    unchanged = before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before
    )
    if flag != "center_writing_weights" or norm == "LN":  # with RMSNorm there is nothing to centre
        assert not unchanged, "the step did nothing, so nothing was tested"


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("name", ["Llama", "Qwen2", "OLMo2"])
@pytest.mark.parametrize("heads", [2, 4], ids=["GQA", "all heads"])
def test_value_biases_alone_go_into_the_output_bias(host, name, heads):
    source = family(name, num_key_value_heads=heads, **BIASES[name])
    model = bridge_of(source, name) if host == "transformer_bridge" else hooked_of(source)
    before = tlb.get_host(model).b_O(1).detach().clone()
    assert drift(model, lambda m: process_alone_(m, "fold_value_biases")) < 1e-4
    after = tlb.get_host(model).b_O(1)
    assert (after - before).abs().max() > 0.1
    assert not model.blocks[1].attn.b_V.any()


def process_alone_(model, flag: str) -> None:
    flags = {name: name == flag for name in FLAGS}
    if hasattr(model, "enable_compatibility_mode"):
        model.enable_compatibility_mode(**flags)
    else:
        # process_weights_ always folds value biases: it has no flag for them.
        model.load_and_process_state_dict(model.state_dict(), **flags)


def parameters(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("shape", [{"d_mlp": 16}, {"d_mlp": 24}], ids=str)
def test_folded_weights_are_our_own_fold(shape):
    """Centring included, which upstream leaves out of W_gate."""
    host = hosts()[0]
    model = native("LN", host, torch.float32, **shape)
    before = [tlb.get_host(model).mlp_map(layer).to(torch.float64) for layer in range(2)]
    left = [weights.tensor.left.clone() for weights in before]
    process_(model, host)
    for layer in range(2):
        torch.testing.assert_close(
            model.blocks[layer].mlp.W_gate.double(), left[layer], rtol=1e-6, atol=1e-6
        )


def test_a_bridge_of_a_square_layer_norm_model_is_exact():
    stable = family("StableLM", intermediate_size=16)
    bridge = bridge_of(copy.deepcopy(stable), "StableLM")
    assert drift(bridge, lambda m: m.enable_compatibility_mode()) < 1e-4


def test_processing_that_changes_the_model_is_refused_whatever_the_cause(monkeypatch):
    """A fault that we do not know of, put into upstream's processing."""
    from transformer_lens.weight_processing import ProcessWeights

    upstream = ProcessWeights.process_weights

    def faulty(state_dict, *args, **kwargs):
        found = upstream(state_dict, *args, **kwargs)
        key = next(key for key in found if key.startswith("embed.W_E") or key == "embed.weight")
        found[key] = 1.01 * found[key]
        return found

    monkeypatch.setattr(ProcessWeights, "process_weights", staticmethod(faulty))
    for host in hosts():
        model = native("LN", host, torch.float32)
        with pytest.raises(FoldingError, match="not one that we know of"):
            process_(model, host)


def test_gated_models_keep_upstream_processing_as_it_is():
    """The guard is for bilinear models: a SiLU model runs upstream's code and nothing else."""
    from families import process_ as process

    llama = tiny_llama("silu", mlp_bias=False)
    bridge = bridge_of(copy.deepcopy(llama), "Llama")
    tokens = torch.randint(0, 40, (2, 9))
    process(bridge, "folded")
    with torch.no_grad():
        found, expected = bridge(tokens).log_softmax(-1), llama(tokens).logits.log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
