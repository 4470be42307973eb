"""Circuits of the bundled story models: traces, contrasts and path expansions close on them."""

import pytest
import torch
from flows import complaints

import tl_bilinear as tlb

GIRL, BOY = "There was a girl named Lily.", "There was a boy named Tim."
TARGET = (" She", " He")


@pytest.mark.parametrize("name", ["stories-1l", "stories-2l"])
def test_traces_and_contrasts_close(name):
    model = tlb.load(name)
    for corrupted in (None, BOY):
        circuit = tlb.trace_circuit(model, GIRL, TARGET, corrupted, max_nodes=10)
        assert not complaints(circuit, exact=1e-9, models=1e-5)


@pytest.mark.parametrize("name", ["stories-1l-swiglu", "stories-2l-swiglu", "stories-5l-swiglu"])
def test_gated_twins_close_with_frozen_gates_and_in_contrasts(name):
    model = tlb.load(name, frozen_gates=True)
    for corrupted in (None, BOY):
        circuit = tlb.trace_circuit(model, GIRL, TARGET, corrupted, max_nodes=10)
        assert not complaints(circuit, exact=1e-9, models=1e-5)


@pytest.mark.parametrize("name", ["stories-1l-relu", "stories-2l-gelu"])
def test_twins_without_a_gate_have_no_tensor_to_trace(name):
    with pytest.raises(ValueError, match="no gated MLP"):
        tlb.load(name, frozen_gates=True)


def test_the_paths_of_one_layer_are_the_logits():
    model = tlb.load("stories-1l")
    values = tlb.expand_paths(model).on_prompt([GIRL, BOY], TARGET)
    she, he = (model.to_tokens("a" + word)[0, -1] for word in TARGET)
    for row, prompt in enumerate((GIRL, BOY)):
        with torch.no_grad():
            logits = model(model.to_tokens(prompt))[0, -1]
        assert values.total[row, 0].item() == pytest.approx(
            (logits[she] - logits[he]).item(), abs=1e-4
        )


def test_whose_pronoun_comes_next_is_read_by_one_head():
    """What the demo shows: of the paths, those through one head tell a girl from a boy."""
    model = tlb.load("stories-1l")
    values = tlb.expand_paths(model).on_prompt([GIRL, BOY], TARGET)
    difference = (values.values[0, 0] - values.values[1, 0]).tolist()
    through = [
        sum(x for term, x in zip(values.terms, difference, strict=True) if f"OV{head} " in term)
        for head in range(4)
    ]
    total = sum(difference)
    assert total > 5 and max(through) > 0.9 * total
    host = tlb.get_host(model)
    head = through.index(max(through))
    girl, boy = (model.to_tokens(prompt) for prompt in (GIRL, BOY))
    site = host.head_site(0)
    other = host.read(boy, [site])[1][site]

    def effect(swapped: int) -> float:
        def put(z, hook):
            z = z.clone()
            z[:, -1, swapped] = other[:, -1, swapped]
            return z

        she, he = (model.to_tokens("a" + word)[0, -1] for word in TARGET)
        with torch.no_grad(), model.hooks(fwd_hooks=[(site, put)]):
            logits = model(girl)[0, -1]
        return float(logits[she] - logits[he])

    assert effect(head) < 0 < min(effect(each) for each in range(4) if each != head)
