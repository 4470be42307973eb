"""What modes of a circuit read is kept in its nodes, and is what the modes themselves say."""

import pytest
import torch
from models import hosts

import tl_bilinear as tlb
from tl_bilinear.attribution.reading import mode_activations
from tl_bilinear.circuits import Circuit

PROMPT = "Tim was sad because he lost"
TEXTS = ("Once upon a time there was a boy named Tim.", "Lily was happy. She went to the park.")


@pytest.fixture(scope="module", params=hosts())
def read(request):
    model = tlb.load("stories-5l", host=request.param)
    circuit = tlb.trace_circuit(model, PROMPT, (" his", " her"), max_nodes=6)
    return model, circuit, tlb.read_modes(model, circuit, TEXTS, k=3)


def test_tokens_activate_with_the_sign_of_the_node(read):
    model, circuit, named = read
    modes = [node for node in named.nodes if node.kind == "mode"]
    assert modes
    host = tlb.get_host(model)
    for node in modes:
        mode = circuit.modes[node.id]
        embeddings = host.mlp_norm(mode.layer).normalize(host.W_E.detach().double())
        values = mode.activations(embeddings) * (1 if node.details["activation"] >= 0 else -1)
        found = [abs(value) for _, value in node.details["top_tokens"]]
        ids = {token for text in TEXTS for token in host.to_tokens(text).tolist()}
        best = values[sorted(ids)].sort(descending=True).values[:3]
        assert torch.allclose(torch.tensor(found).double(), best.abs())
        worst = values[sorted(ids)].sort().values[:3]
        opposite = [abs(value) for _, value in node.details["opposite_tokens"]]
        assert torch.allclose(torch.tensor(opposite).double(), worst.abs())


def test_the_spectrum_holds_the_mode_at_its_index(read):
    _, _, named = read
    for node in named.nodes:
        if node.kind == "mode" and node.index < len(node.details["spectrum"]):
            value = node.details["spectrum"][node.index]
            assert value == pytest.approx(node.details["eigenvalue"], rel=1e-5)


def test_examples_are_where_a_mode_is_most_active(read):
    model, circuit, named = read
    node = next(node for node in named.nodes if node.kind == "mode")
    values = [mode_activations(model, text, [circuit.modes[node.id]])[1][1:, 0] for text in TEXTS]
    best = sorted((float(column.abs().max()) for column in values), reverse=True)
    assert [abs(value) for _, value in node.details["examples"]] == pytest.approx(best)


def test_only_details_change(read):
    _, circuit, named = read
    assert named.edges == circuit.edges and named.modes == circuit.modes
    assert [n.share for n in named.nodes] == [n.share for n in circuit.nodes]
    again = Circuit.from_json(named.to_json())
    assert again == named


def test_a_circuit_without_its_modes_is_refused(read):
    model, circuit, _ = read
    with pytest.raises(ValueError, match="trace it again"):
        tlb.read_modes(model, Circuit.from_json(circuit.to_json()))


def test_frozen_gates_have_no_spectrum():
    model = tlb.load("stories-5l-swiglu", frozen_gates=True)
    circuit = tlb.trace_circuit(model, PROMPT, " his", max_nodes=3)
    named = tlb.read_modes(model, circuit)
    modes = [node for node in named.nodes if node.kind == "mode"]
    assert modes and all("spectrum" not in n.details and n.details["top_tokens"] for n in modes)
