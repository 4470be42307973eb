"""Which modes carry an answer, and contrastive modes of outputs."""

import pytest
import torch
from knowing import knowing
from models import hosts
from test_fit_edit import TEXTS, known_questions

import tl_bilinear as tlb
from tl_bilinear.dictionary import Dictionary
from tl_bilinear.unlearning import Question, accuracy, answer_rows, site_logits
from tl_bilinear.unlearning.answer_rows import site_log_odds
from tl_bilinear.unlearning.find import find_modes
from tl_bilinear.unlearning.fit import fit_edit
from tl_bilinear.unlearning.output_modes import output_modes


@pytest.fixture(scope="module", params=hosts()[:1])  # the bridge's turn is TransformerLens 4's
def model(request):
    return knowing(request.param)


TOKENS = torch.tensor([[1, 4, 9, 16, 25]])
FEW = {"texts": TEXTS[:8], "contexts": 0, "max_steps": 6, "clearance": 0.5}


@pytest.fixture(scope="module")
def sets(model):
    return split(model)


def split(model) -> tuple[list[Question], list[Question]]:
    questions = known_questions(model, 12)
    return questions[:3], questions[3:]


def mean_odds(model, questions) -> float:
    rows = answer_rows(model, questions)
    with torch.no_grad():
        return float(site_log_odds(site_logits(model, rows), rows.label).mean())


@pytest.mark.parametrize("directions", ["gradient", "unembedding", "mean difference", "dictionary"])
def test_shares_are_what_a_little_ablation_does(model, sets, directions):
    """`forget` is the derivative of the mean log-odds by the mode's amplitude."""
    if directions == "dictionary":
        eye = torch.eye(16, dtype=torch.float64)
        zero = torch.zeros(16, dtype=torch.float64)
        directions = Dictionary(eye, zero, eye, zero, "relu", "blocks.1.hook_resid_post")
    forget, retain = sets
    found = find_modes(model, forget, retain, k=5, directions=directions, n_directions=2)
    assert 0 < len(found) <= 5
    assert found.shares.tolist() == sorted(found.shares.tolist(), reverse=True)
    assert bool(((found.shares >= 0) & (found.shares <= 1)).all())
    for mode, share in list(zip(found.modes, found.forget.tolist(), strict=True))[:2]:
        odds = []
        for scale in (1 + 1e-3, 1 - 1e-3):
            with tlb.ablate(model, mode, scale=scale):
                odds.append(mean_odds(model, forget))
        assert abs((odds[0] - odds[1]) / 2e-3 - share) <= 1e-3 * max(1.0, abs(share))


def test_found_modes_prefer_what_is_to_be_forgotten(model, sets):
    """Those of one set are not those of the other; the whole list falls."""
    forget, retain = sets
    one = find_modes(model, forget, retain, k=8)
    other = find_modes(model, retain[:3], [*forget, *retain[3:]], k=8)
    assert one.shares[0] > 0.5 and other.shares[0] > 0.5
    assert all(e > r for e, r in zip(one.forget_energy, one.retain_energy, strict=True))
    assert [m.label for m in one.modes] != [] and one.top(2)[0][0] is one.modes[0]


def test_amplitudes_of_eigenmodes_are_fitted(model, sets):
    forget, retain = sets
    modes = find_modes(model, forget, retain, k=24, n_directions=2).modes
    edit = fit_edit(model, forget[:1], retain, "eigenmodes", modes=modes, floor=-1.0, **FEW)
    with edit.applied(model):
        assert accuracy(model, forget[:1]) == 0
        expected = model(TOKENS).detach()
    assert edit.n_modes <= 24 and len(edit.modes) == edit.n_modes
    with tlb.ablate(model, edit.modes), torch.no_grad():
        torch.testing.assert_close(model(TOKENS), expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="neurons"):
        edit.apply_(model)


@pytest.mark.parametrize("moments", ["activations", "gradients"])
def test_output_modes_by_hook_and_in_the_weights(moments):
    own = knowing(hosts()[0])
    forget, retain = split(own)
    found = output_modes(own, forget, retain, k=2, moments=moments)
    assert found.n_modes == 4 and set(found.overlaps) == {0, 1}
    one = found.truncate(1)
    assert one.n_modes == 1
    tokens = tlb.get_host(own).to_tokens("w1 w2 w3")[None]
    with torch.no_grad():
        plain = own(tokens)
        with found.removed(own):
            hooked = own(tokens)
        found.remove_(own)
        written = own(tokens)
    torch.testing.assert_close(written, hooked, rtol=1e-9, atol=1e-9)
    assert (plain - hooked).abs().max() > 1e-3


def test_output_modes_of_a_gated_model():
    gated = knowing(hosts()[0], act_fn="silu")
    questions = known_questions(gated, 6)
    assert output_modes(gated, questions[:2], questions[2:], k=1).n_modes == 2
    with pytest.raises(ValueError, match="gate"):
        find_modes(gated, questions[:2], questions[2:])
    edit = fit_edit(
        gated, questions[:1], questions[1:], texts=TEXTS, contexts=0, rank=2, floor=-1.0
    )
    with edit.applied(gated):
        assert accuracy(gated, questions[:1]) == 0
