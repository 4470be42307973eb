"""Circuits of several prompts: what recurs, their mean, and mean ablation on other prompts."""

from dataclasses import replace

import pytest
import torch
from flows import complaints
from models import hosts

import tl_bilinear as tlb
from tl_bilinear.circuits.bases import choose_basis
from tl_bilinear.circuits.parts import ModeParts, others
from tl_bilinear.circuits.recurring import RecurringMode, find_recurring
from tl_bilinear.decompositions import Mode

PROMPTS = ["Tim was sad because he lost", "Lily was happy. She saw her"]
OTHERS = ["Ben had a toy. Ben took", "The girl was mad and lost"]
PAIR = (" his", " her")
TEXTS = ["Once upon a time, there was a little girl named Lily.", "Tim had a big red ball."]


@pytest.fixture(scope="module", params=hosts()[:1])  # the bridge's turn is TransformerLens 4's
def story(request):
    return tlb.load("stories-5l", host=request.param)


@pytest.fixture(scope="module")
def found(story):
    return tlb.trace_dataset(story, PROMPTS, PAIR, max_nodes=25)


def test_the_mean_circuit_is_conserved(found):
    mean = found.aggregate()
    assert not complaints(mean, 1e-9, 1e-5)
    assert mean.target == pytest.approx(sum(c.target for c in found.circuits) / 2)
    assert len(mean.tokens) == max(len(c.tokens) for c in found.circuits)
    kinds = {node.kind for node in mean.nodes}
    assert {"token", "supernode", "remainder", "logit"} <= kinds


def test_a_prompt_recurs_in_itself(story, found):
    twice = tlb.trace_dataset(story, [PROMPTS[0]] * 2, [PAIR, PAIR], max_nodes=25, cosine=1 - 1e-9)
    circuit = twice.circuits[0]
    modes = [node for node in circuit.nodes if node.kind == "mode"]
    assert len(twice.recurring()) == len(twice.modes) <= len(modes)
    mean = twice.aggregate()
    heads = [sorted(n.share for n in c.nodes if n.kind == "head") for c in (circuit, mean)]
    assert heads[0] == pytest.approx(heads[1])
    assert not [node for node in mean.nodes if node.kind == "supernode"]
    assert sum(mode.shares[0] for mode in twice.modes) == pytest.approx(
        sum(node.share for node in modes)
    )


def test_modes_are_told_apart_by_cosine_sign_layer_and_position(found):
    circuit = found.circuits[0]
    node = next(node for node in circuit.nodes if node.kind == "mode")
    mode, other = circuit.modes[node.id], torch.randn(64, dtype=torch.float64)
    tilted = mode.eigenvector + 0.3 * other / other.norm()
    cases = {
        "flipped": replace(mode, eigenvector=-mode.eigenvector),
        "tilted": replace(mode, eigenvector=tilted / tilted.norm()),
        "negative": replace(mode, eigenvalue=-mode.eigenvalue),
    }
    same = {}
    for name, changed in cases.items():
        pair = [circuit, replace(circuit, modes={**circuit.modes, node.id: changed})]
        keep = [
            replace(c, nodes=tuple(n for n in c.nodes if n.kind != "mode" or n is node))
            for c in [replace(each, edges=()) for each in pair]
        ]
        same[name] = [len(find_recurring(keep, cosine)) == 1 for cosine in (0.9, 0.999)]
    assert same == {"flipped": [True, True], "tilted": [True, False], "negative": [False, False]}
    with pytest.raises(ValueError, match="cosine"):
        find_recurring(found.circuits, 0.0)


def all_of(tensor, layers) -> list[RecurringMode]:
    return [
        RecurringMode(f"{layer}.{i}", layer, None, i, None, (1.0,), ())
        for layer in layers
        for i in range(tensor.rank)
    ]


def test_the_whole_circuit_is_the_model_and_nothing_without_it(story):
    tensor = tlb.get_host(story).mlp_tensor(0)
    every = all_of(tensor, range(5))
    result = tlb.measure_faithfulness(story, every, OTHERS, PAIR, TEXTS, basis="neurons", draws=1)
    assert result.only == pytest.approx(result.full, abs=1e-4)
    assert result.without == pytest.approx(result.nothing, abs=1e-4)
    assert result.recovered == pytest.approx(1, abs=1e-4) == result.lost
    assert max(abs(a - b) for a, b in zip(result.full, result.nothing, strict=True)) > 0.1


def test_ablating_neurons_is_setting_them_to_their_mean(story):
    host, layer, units = tlb.get_host(story), 3, [5, 17]
    site = f"blocks.{layer}.mlp.hook_post"
    rows = [host.to_tokens(text) for text in TEXTS]
    means = torch.cat([host.read(row[None], [site])[1][site][0, 1:] for row in rows]).mean(0)

    def to_mean(value, hook):
        value = value.clone()
        value[:, 1:, units] = means[units]
        return value

    expected = []
    with torch.no_grad(), host.hooks([(site, to_mean)]):
        for prompt in OTHERS:
            circuit_target = story(host.to_tokens(prompt)[None])[0, -1]
            his, her = (host.to_tokens(prompt + word)[-1] for word in PAIR)
            expected.append(float(circuit_target[his] - circuit_target[her]))
    modes = [RecurringMode(str(i), layer, None, i, None, (1.0,), ()) for i in units]
    result = tlb.measure_faithfulness(
        story, modes, OTHERS, [PAIR, PAIR], TEXTS, basis="neurons", draws=2
    )
    assert result.without == pytest.approx(expected, abs=1e-4)
    assert result.without != pytest.approx(result.full, abs=1e-4)
    assert len(result.only_controls) == 2 and result.tokens == sum(len(r) - 1 for r in rows)


def test_modes_of_a_set_are_measured(story, found):
    result = tlb.measure_faithfulness(story, found.modes[:10], OTHERS, " his", TEXTS, draws=2)
    assert result.parts == 10
    assert len(result.recovered_by_controls) == len(result.lost_with_controls) == 2
    again = tlb.measure_faithfulness(story, found.modes[:10], OTHERS, " his", TEXTS, draws=2)
    assert again.only_controls == result.only_controls and again.without == result.without


def test_mode_parts_are_lambda_v_x_squared_along_their_own_direction():
    u = torch.randn(3, 16, dtype=torch.float64)
    u[2] = 5 * u[0]
    vectors = torch.nn.functional.normalize(torch.randn(3, 16, dtype=torch.float64))
    modes = [Mode(0, u[i], float(i + 1), vectors[i]) for i in range(3)]
    parts, x = ModeParts.of(modes), torch.randn(7, 16, dtype=torch.float64)
    seen = torch.einsum("tpd,cd->tpc", parts.outputs(x), u)
    for i, mode in enumerate(modes):
        torch.testing.assert_close(seen[:, i, i], mode.contributions(x))
    assert seen[:, 0, 1].abs().max() < 1e-9
    drawn = parts.drawn(torch.Generator().manual_seed(0))
    assert not torch.allclose(drawn.eigenvectors, parts.eigenvectors)


@pytest.mark.parametrize("name", ["neurons", "random", "w_out", "hosvd", "tucker"])
def test_all_parts_of_a_basis_are_the_layer(story, name):
    host = tlb.get_host(story)
    tensor, x = host.mlp_tensor(1).to(torch.float64), torch.randn(5, 64, dtype=torch.float64)
    n = tensor.rank if name == "neurons" else 64
    parts = choose_basis(host, name).parts(tensor, 1, tuple(range(n)), ())
    torch.testing.assert_close(parts.outputs(x).sum(1), tensor(x))
    some = choose_basis(host, name).parts(tensor, 1, (0, 1), ())
    torch.testing.assert_close(some.outputs(x), parts.outputs(x)[:, :2])


def test_controls_are_other_elements():
    generator = torch.Generator().manual_seed(0)
    assert not set(others((0, 1, 2), 10, generator)) & {0, 1, 2}
    assert len(others(tuple(range(8)), 10, generator)) == 8


def test_refusals(story, found, unchecked):
    with pytest.raises(ValueError, match="one each"):
        tlb.trace_dataset(story, PROMPTS, [PAIR])
    with pytest.raises(ValueError, match="joins"):
        tlb.trace_dataset(story, PROMPTS, PAIR, joins=True)
    with pytest.raises(ValueError, match="at least one mode"):
        tlb.measure_faithfulness(story, [], OTHERS, PAIR, TEXTS)
    gated = tlb.load("stories-5l-swiglu", frozen_gates=True)
    with pytest.raises(ValueError, match="belong to their tokens"):
        tlb.measure_faithfulness(gated, found.modes[:1], OTHERS, PAIR, TEXTS)
