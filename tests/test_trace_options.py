"""Contrasts, bases, trees, joins, frozen gates; a twin by enumeration of paths; refusals."""

from collections import defaultdict
from typing import Any

import pytest
import torch
from flows import complaints, size
from models import hosts, native, save, tiny_llama
from path_twin import PathTwin

import tl_bilinear as tlb
from tl_bilinear.checkpoints.dictionaries import load_dictionary
from tl_bilinear.circuits import Circuit
from tl_bilinear.circuits.bases import InputDirections, OutputDirections
from tl_bilinear.circuits.bases.mass_bound import largest_share
from tl_bilinear.circuits.scores import logarithmic_mean

PROMPT = "Tim was sad because he lost"
PAIR = (" his", " her")
EXACT = 1e-9


@pytest.fixture(scope="module")
def story():
    return tlb.load("stories-5l")


@pytest.fixture(scope="module")
def gated():
    return tlb.load("stories-5l-swiglu", frozen_gates=True)


@pytest.fixture(scope="module")
def two_prompts(story):
    first = story.to_tokens(PROMPT)[0]
    second = first.clone()
    second[1:4] = story.to_tokens("Lily is so")[0, 1:4]
    return first, second


def by_source(circuit: Circuit) -> dict[str, float]:
    """Shares under the twin's names."""
    found: dict[str, float] = defaultdict(float)
    for node in circuit.sources:
        name = {"E": f"token {node.position}", "P": "positions", "norm": "norms"}
        start = node.id.split(".")[0]
        found[name.get(start, "patterns" if start == "pattern" else node.id)] += node.share
    return found


TINY: dict[str, Any] = {
    "d_model": 4,
    "d_head": 2,
    "n_heads": 2,
    "d_mlp": 3,
    "d_vocab": 40,
    "n_ctx": 8,
}


@pytest.mark.parametrize("n_prompts", [1, 2])
def test_shares_of_sources_equal_an_enumeration_of_all_paths(n_prompts):
    model = native("RMSPre", hosts()[0], positional_embedding_type="rotary", rotary_dim=2, **TINY)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name or ".b_" in name:
                parameter.zero_()
    prompts = [torch.tensor([3, 8, 5]), torch.tensor([3, 9, 6])][:n_prompts]
    u = torch.randn(4, dtype=torch.float64)
    with torch.no_grad():
        expected = PathTwin(model, prompts).trace(u, 2)
    circuit = tlb.trace_circuit(model, prompts[0], u, *prompts[1:], kept=1.0)
    found = by_source(circuit)
    scale = size(circuit)
    assert len(expected) == (3 if n_prompts == 1 else 5)
    for name, share in expected.items():
        # A native bridge's norm computes in float32, and the twin reads its activations.
        assert found.get(name, 0.0) == pytest.approx(share, abs=1e-6 * scale)
    rest = sum(abs(share) for name, share in found.items() if name not in expected)
    assert rest < 1e-9 * scale


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("norm", ["LN", "RMS", None])
def test_contrasts_close_with_nothing_frozen(host, norm):
    model = native(norm, host)
    first, second = torch.randint(0, 40, (2, 5))
    circuit = tlb.trace_circuit(model, first, (7, 9), second, max_nodes=12)
    assert not complaints(circuit, EXACT, 1e-9 if norm in ("LN", None) else 1e-5)
    kinds = {node.kind for node in circuit.sources}
    assert {"token", "change", "remainder"} <= kinds and "bias" not in kinds
    assert circuit.provenance.frozen == ()
    same = tlb.trace_circuit(model, first, (7, 9), first, max_nodes=3)
    assert same.target == 0 and not same.edges


@pytest.mark.one_major(3)
def test_contrasts_of_llamas_and_of_gated_models_close(story, gated, two_prompts, tmp_path):
    first, second = two_prompts
    for model in (story, gated):
        circuit = tlb.trace_circuit(model, first, PAIR, second, max_nodes=15)
        assert not complaints(circuit, EXACT, 1e-5)
        assert circuit.settings["trace"] == "contrast, nothing frozen"
    llama = tlb.load(save(tiny_llama(), tmp_path / "llama"), dtype=torch.float64)
    rows = torch.randint(3, 40, (2, 6))
    circuit = tlb.trace_circuit(llama, rows[0], 7, rows[1], kept=0.5)
    assert not complaints(circuit, EXACT, 1e-5)


def test_frozen_gates(gated):
    circuit = tlb.trace_circuit(gated, PROMPT, PAIR, max_nodes=20)
    assert not complaints(circuit, EXACT, 1e-5)
    assert "gates' slopes (SiLU)" in circuit.provenance.frozen


@pytest.mark.one_major(3)
@pytest.mark.parametrize("basis", ["neurons", "random", "w_out", "hosvd", "tucker"])
def test_shared_bases_close(story, basis):
    circuit = tlb.trace_circuit(story, PROMPT, PAIR, max_nodes=15, basis=basis)
    assert not complaints(circuit, EXACT, 1e-5)
    assert circuit.settings["basis"] == basis


@pytest.mark.one_major(3)
@pytest.mark.parametrize("name", ["stories-5l-mlp-in", "stories-5l-mlp-out"])
def test_features_of_a_dictionary_close(story, name):
    basis = {2: load_dictionary(name)}
    circuit = tlb.trace_circuit(story, PROMPT, PAIR, max_nodes=60, basis=basis)
    assert not complaints(circuit, EXACT, 1e-5)
    features = [node for node in circuit.nodes if "feature" in node.label]
    assert features and {node.layer for node in features} == {2}
    with pytest.raises(ValueError, match="cannot take a contrast apart"):
        tlb.trace_circuit(story, PROMPT, PAIR, PROMPT, basis=basis)


@pytest.mark.one_major(3)
def test_overcomplete_directions_and_biases():
    model = native("LN", hosts()[-1])
    tokens = torch.randint(0, 40, (4,))
    rows = {layer: torch.randn(20, 16, dtype=torch.float64) for layer in range(2)}
    for basis in (InputDirections(rows, "mine"), OutputDirections(rows, "mine")):
        circuit = tlb.trace_circuit(model, tokens, 7, max_nodes=15, basis=basis)
        assert not complaints(circuit, EXACT, EXACT)


@pytest.mark.one_major(3)
def test_every_basis_that_spans_gives_tokens_the_same_shares():
    model = native("LN", hosts()[-1], d_mlp=16)
    tokens = torch.randint(0, 40, (3,))
    shares = []
    for basis in ("eigenmodes", "neurons", "random", "w_out"):
        circuit = tlb.trace_circuit(model, tokens, 7, kept=1.0, basis=basis)
        shares.append([node.share for node in circuit.nodes if node.kind == "token"])
    for other in shares[1:]:
        assert other == pytest.approx(shares[0], rel=1e-8, abs=1e-8)


@pytest.mark.one_major(3)
def test_a_tree_gives_every_reader_modes_of_its_own():
    model = native("LN", hosts()[-1])
    tokens = torch.randint(0, 40, (4,))
    circuit = tlb.trace_circuit(model, tokens, 7, max_nodes=40, tree=True)
    assert not complaints(circuit, EXACT, EXACT)
    leaving = defaultdict(set)
    for edge in circuit.edges:
        leaving[edge.source].add(edge.target)
    inner = [node.id for node in circuit.nodes if node.kind in ("mode", "head")]
    assert all(len(leaving[id]) == 1 for id in inner)


@pytest.mark.one_major(3)
def test_joins_keep_pairs_whole():
    model = native("LN", hosts()[-1])
    tokens = torch.randint(0, 40, (4,))
    plain = tlb.trace_circuit(model, tokens, 7, max_nodes=25)
    circuit = tlb.trace_circuit(model, tokens, 7, max_nodes=25, joins=True)
    assert not complaints(circuit, EXACT, EXACT)
    joins = [node for node in circuit.nodes if node.kind == "join"]
    assert joins and all(abs(n.share) >= circuit.settings["threshold"] for n in joins)
    for join in joins:
        halves = [edge.share for edge in circuit.edges if edge.target == join.id]
        assert halves == [join.share / 2] * 2
    before = {(edge.source, edge.target): edge.share for edge in plain.edges}
    join = joins[0]
    (mode,) = [edge.target for edge in circuit.edges if edge.source == join.id]
    first, second = [edge.source for edge in circuit.edges if edge.target == join.id]
    product = 2 * before[first, mode] * before[second, mode] / plain.node(mode).share
    assert join.share == pytest.approx(product, rel=1e-12)


@pytest.mark.one_major(3)
def test_a_mode_is_what_it_says(story):
    circuit = tlb.trace_circuit(story, PROMPT, PAIR, max_nodes=20)
    assert set(circuit.modes) == {node.id for node in circuit.nodes if node.kind == "mode"}
    host = tlb.get_host(story)
    streams = host.read_streams(host.to_tokens(PROMPT)[None], range(5))
    for id, mode in circuit.modes.items():
        node = circuit.node(id)
        x = streams[mode.layer][0, node.position].double()
        assert float(mode.contributions(x)) == pytest.approx(node.share, rel=1e-4, abs=1e-6)
        image = host.mlp_tensor(mode.layer).to(torch.float64)
        image = image.interaction_matrix(mode.direction) @ mode.eigenvector
        torch.testing.assert_close(image, mode.eigenvalue * mode.eigenvector, rtol=0, atol=1e-9)


@pytest.mark.one_major(3)
def test_the_curve_reaches_beyond_the_budget(story):
    circuit = tlb.trace_circuit(story, PROMPT, PAIR, max_nodes=20)
    curve = circuit.settings["budget_curve"]
    assert curve[0][0] == circuit.settings["nodes"] <= 20 < curve[-1][0]
    assert curve[0][1] == pytest.approx(circuit.kept_share)
    assert curve[0][2] == pytest.approx(1 - circuit.completeness)
    assert curve[-1][1] < 0.97


@pytest.mark.one_major(3)
def test_the_curve_reaches_all_budgets_where_it_is_asked_for():
    model = native("LN", hosts()[-1])
    tokens = torch.randint(0, 40, (4,))
    circuit = tlb.trace_circuit(model, tokens, (7, 9), max_nodes=5, larger_budgets=None)
    curve = circuit.settings["budget_curve"]
    assert curve[-1][1] >= 0.97 and curve[-2][1] < 0.97
    alone = tlb.trace_circuit(model, tokens, (7, 9), max_nodes=5, larger_budgets=0)
    shorter = alone.settings["budget_curve"]
    assert shorter == curve[: len(shorter)] and len(shorter) < len(curve)
    with pytest.raises(ValueError, match="larger_budgets"):
        tlb.trace_circuit(model, tokens, (7, 9), larger_budgets=-1)


def test_one_token_is_a_prompt(story):
    circuit = tlb.trace_circuit(story, torch.tensor([1]), PAIR, max_nodes=5)
    assert not complaints(circuit, EXACT, 1e-5)


@pytest.mark.parametrize(
    ("text", "target", "options", "message"),
    [
        ("", PAIR, {}, "empty"),
        (["a", "b"], PAIR, {}, "must be one prompt, got 2"),
        (PROMPT, "", {}, "empty string"),
        (PROMPT, 10**6, {}, "out of range"),
        (PROMPT, 3.5, {}, "a target is"),
        (PROMPT, PAIR, {"position": 99}, "position` 99 is out of range"),
        (PROMPT, " ball", {"position": 2}, "leave `position` at -1"),
        (PROMPT, PAIR, {"layer": 2}, "a direction"),
        (PROMPT, torch.ones(64), {"layer": 7}, "layer` 7 is out of range"),
        ("Tim " * 600, PAIR, {}, "does not fit the model's context"),
        (PROMPT, PAIR, {"corrupted": "Tim"}, "prompts of one length"),
        (PROMPT, PAIR, {"max_nodes": 0}, "at least 1"),
        (PROMPT, PAIR, {"kept": 1.5}, r"in \(0, 1\]"),
        (PROMPT, PAIR, {"kept": 0.5, "max_nodes": 5}, "not both"),
        (PROMPT, PAIR, {"basis": "modes"}, "must be one of"),
        (PROMPT, PAIR, {"basis": "neurons", "joins": True}, "joins are pairs"),
    ],
)
def test_refusals(story, text, target, options, message, unchecked):
    with pytest.raises(ValueError, match=message):
        tlb.trace_circuit(story, text, target, **options)


def test_a_gated_model_without_frozen_gates_is_refused():
    with pytest.raises(tlb.NotBilinearError, match="frozen_gates=True"):
        tlb.trace_circuit(tlb.load("stories-5l-swiglu", check=False), PROMPT, PAIR)


@pytest.mark.parametrize("host", hosts()[:1])
@pytest.mark.parametrize("options", [{}, {"positional_embedding_type": "rotary", "rotary_dim": 4}])
def test_patterns_are_read_on_through_their_scores(host, options):
    model = native("LN", host, **options)
    first, second = torch.randint(0, 40, (2, 4))
    both = (first, 7, second)
    circuit = tlb.trace_circuit(model, *both, max_nodes=12, expand_patterns=True)
    assert not complaints(circuit, EXACT, EXACT)
    whole = tlb.trace_circuit(model, *both, kept=1.0, expand_patterns=True)
    assert not complaints(whole, EXACT, EXACT)
    entered = {edge.target for edge in whole.edges}
    assert any(n.id.startswith("pattern") and n.id in entered for n in whole.nodes)
    # What queries and keys do not give of them is rounding.
    assert sum(abs(n.share) for n in whole.nodes if "rounding" in n.id) < 1e-9 * size(whole)
    explained = [n.share for n in whole.sources if n.id.startswith(("E.", "norm."))]
    assert sum(explained) == pytest.approx(whole.target, abs=1e-8 * size(whole))


@pytest.mark.one_major(3)
def test_patterns_of_stories_and_of_llamas_are_read_on(story, two_prompts, tmp_path):
    first, second = two_prompts
    circuit = tlb.trace_circuit(story, first, PAIR, second, max_nodes=15, expand_patterns=True)
    assert not complaints(circuit, EXACT, 1e-5)
    rounding = sum(abs(n.share) for n in circuit.nodes if "rounding" in n.id)
    assert rounding < 1e-5 * size(circuit)
    llama = tlb.load(
        save(tiny_llama(), tmp_path / "llama"), host="transformer_bridge", dtype=torch.float64
    )
    rows = torch.randint(3, 40, (2, 5))
    circuit = tlb.trace_circuit(llama, rows[0], 7, rows[1], max_nodes=10, expand_patterns=True)
    assert not complaints(circuit, EXACT, 1e-5)
    with pytest.raises(ValueError, match="is of a contrast"):
        tlb.trace_circuit(story, PROMPT, PAIR, expand_patterns=True)


def test_logarithmic_means():
    a = torch.rand(50, dtype=torch.float64)
    b = torch.cat([a[:10] * (1 + 1e-13), torch.rand(40, dtype=torch.float64)])
    found = logarithmic_mean(a, b)
    assert ((found >= torch.minimum(a, b)) & (found <= torch.maximum(a, b) * (1 + 1e-12))).all()
    torch.testing.assert_close(found[10:], ((a - b) / (a.log() - b.log()))[10:])
    zero = torch.zeros(1, dtype=torch.float64)
    assert logarithmic_mean(zero, a[:1]) == 0 == logarithmic_mean(zero, zero)


@pytest.mark.parametrize("spikes", [0, 1, 5])
@pytest.mark.parametrize("d", [4, 60])
def test_no_share_is_above_the_bound(spikes, d):
    matrices = torch.randn(6, d, d, dtype=torch.float64) / d**0.5
    matrices = (matrices + matrices.mT) / 2
    for _ in range(min(spikes, d)):
        v = torch.randn(6, d, dtype=torch.float64)
        matrices = matrices + 0.3 * torch.randn(1).item() * v[:, :, None] * v[:, None]
    values, vectors = torch.linalg.eigh(matrices)
    mid = torch.randn(6, d, dtype=torch.float64)
    mid[0] = vectors[0, :, 0]
    mid[1] = vectors[1] @ torch.linspace(0, 1, d, dtype=torch.float64) ** 8

    def product(x: torch.Tensor) -> torch.Tensor:
        return (matrices @ x[..., None])[..., 0]

    largest = (values * (vectors.mT @ mid[..., None])[..., 0] ** 2).abs().amax(1)
    for steps in (1, 2, 8, 24, d):
        assert (largest_share(product, mid, min(steps, d)) >= largest).all()
    if not spikes and d == 60:
        whole = product(mid).norm(dim=1) * mid.norm(dim=1)
        assert (largest_share(product, mid, 24)[2:] < 0.5 * whole[2:]).all()


def test_flows_that_cancel_leave_their_node():
    from tl_bilinear.circuits.readers import LOGIT, Ledger

    ledger = Ledger()
    ledger.node(LOGIT, "logit", "the target", 9)
    ledger.node("mode", "mode", "a mode", 3)
    ledger.node("rest", "remainder", "the rest", 1)
    ledger.node("idle", "remainder", "nothing", 1)
    ledger.flow("mode", [LOGIT], torch.tensor([2.0]))
    ledger.flow("rest", [LOGIT, "mode"], torch.tensor([1e-17, -1e-17]))
    ledger.flow("idle", [LOGIT], torch.tensor([0.0]))
    nodes, edges = ledger.build(2.0)
    assert [(node.id, node.share) for node in nodes[:-1]] == [("rest", 0.0), ("mode", 2.0)]
    assert {edge.source for edge in edges} == {"rest", "mode"} and nodes[-1].id == LOGIT
