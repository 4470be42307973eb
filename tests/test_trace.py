"""Traced circuits: every flow is conserved and every sum closes, on every host and shape."""

from dataclasses import replace

import pytest
import torch
from families import BIASES, bridge_of, family, hooked_of
from flows import complaints, size
from models import hosts, native, save, tiny_llama

import tl_bilinear as tlb
from tl_bilinear.circuits import Circuit

PROMPT = "Lily saw a boy named Tim. Tim was sad because he lost"
TARGETS = {
    "token id": 7,
    "pair of ids": (7, 9),
    "direction": torch.linspace(-1, 1, 16, dtype=torch.float64),
}
EXACT = 1e-9


def tolerance(host: str, norm: str | None) -> float:
    """Of the model's own target: native bridges' RMS and parameter-free norms are float32."""
    return 1e-9 if host == "hooked_transformer" or norm in ("LN", None) else 1e-5


# One host per major: the bridge's turn is TransformerLens 4's; tiny models have both below.
@pytest.fixture(scope="module", params=hosts()[:1])
def story(request):
    return tlb.load("stories-5l", host=request.param)


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize(
    ("norm", "n_layers", "target"),
    [
        ("LN", 1, "token id"),
        ("RMS", 2, "pair of ids"),
        ("LNPre", 3, "direction"),
        ("RMSPre", 4, "token id"),
        (None, 2, "direction"),
    ],
)
def test_flows_are_conserved_at_every_node(host, norm, n_layers, target):
    model = native(norm, host, n_layers=n_layers)
    circuit = tlb.trace_circuit(model, torch.randint(0, 40, (5,)), TARGETS[target], max_nodes=12)
    assert not complaints(circuit, EXACT, tolerance(host, norm))
    assert circuit.remainder


@pytest.mark.parametrize("host", hosts()[:1])  # the bridge's turn is TransformerLens 4's
@pytest.mark.parametrize("options", [{}, {"n_layers": 4, "n_key_value_heads": 1}])
def test_everything_kept_leaves_no_remainder(host, options):
    model = native("LN", host, positional_embedding_type="rotary", rotary_dim=4, **options)
    circuit = tlb.trace_circuit(model, torch.randint(0, 40, (4,)), (7, 9), kept=1.0)
    assert not complaints(circuit, EXACT, EXACT)
    gone = sum(abs(node.share) for node in circuit.sources if node.kind == "remainder")
    assert gone < 1e-9 * size(circuit)
    assert circuit.kept_share > 1 - 1e-9


@pytest.mark.parametrize("host", hosts())
def test_llamas_with_biases_and_shared_heads(host, tmp_path):
    model = tlb.load(save(tiny_llama(), tmp_path / "llama"), host=host, dtype=torch.float64)
    circuit = tlb.trace_circuit(model, torch.randint(3, 40, (7,)), (7, 9), max_nodes=20)
    assert not complaints(circuit, EXACT, 1e-5)
    assert {"bias.L0.mlp", "bias.L1.attention"} <= {node.id for node in circuit.nodes}


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("name", ["Gemma 2", "Gemma 3", "OLMo2", "StableLM"])
def test_post_norms_softcaps_and_norms_of_other_families(name, host):
    """Gemma 2 and 3 and OLMo2 have norms behind their sublayers, OLMo2 none before them."""
    made = bridge_of if host == "transformer_bridge" else hooked_of
    model = made(family(name, **BIASES[name]), name)
    rows = torch.randint(3, 40, (2, 7))
    for corrupted in (None, rows[1]):
        circuit = tlb.trace_circuit(model, rows[0], (7, 9), corrupted, max_nodes=12)
        assert not complaints(circuit, EXACT, 1e-5)


def test_story_model_closes_for_strings_pairs_and_directions(story):
    u = torch.randn(64, dtype=torch.float64)
    for target in ((" his", " her"), " ball", (" ball", " bike"), (" ball", " balloon"), u):
        circuit = tlb.trace_circuit(story, PROMPT, target, max_nodes=20)
        assert not complaints(circuit, EXACT, 1e-5)
        modes = tlb.attribute_modes(story, PROMPT, target)
        assert circuit.target == pytest.approx(float(modes.total), abs=1e-4)


def test_the_stream_behind_a_layer(story):
    u = torch.randn(64, dtype=torch.float64)
    circuit = tlb.trace_circuit(story, PROMPT, u, layer=1, position=4, max_nodes=20)
    host = tlb.get_host(story)
    site = "blocks.1.hook_resid_post"
    _, cache = host.read(host.to_tokens(PROMPT)[None], [site])
    assert circuit.target == pytest.approx(float(cache[site][0, 4].double() @ u), rel=1e-5)
    assert not complaints(circuit, EXACT, 1e-5)
    assert circuit.n_layers == 2


def faulty(circuit: Circuit, which: str) -> Circuit:
    """The circuit with one number changed."""
    if which == "edge":
        edge = max(circuit.edges, key=lambda edge: abs(edge.share))
        edges = [replace(e, share=1.01 * e.share) if e is edge else e for e in circuit.edges]
        return replace(circuit, edges=tuple(edges))
    if which == "target":
        return replace(circuit, target=circuit.target + 0.01)
    node = circuit.top(1)[0]
    nodes = [replace(n, share=1.01 * n.share) if n is node else n for n in circuit.nodes]
    return replace(circuit, nodes=tuple(nodes))


@pytest.mark.parametrize("which", ["edge", "node", "target"])
def test_the_checks_can_fail(which):
    model = native("RMS", hosts()[0])
    circuit = tlb.trace_circuit(model, torch.randint(0, 40, (6,)), 7, max_nodes=12)
    assert not complaints(circuit, EXACT, 1e-5)
    assert complaints(faulty(circuit, which), EXACT, 1e-5)
