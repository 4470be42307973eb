"""`editable`: what is said before anything is edited."""

import random

import pytest
import torch
from knowing import knowing
from models import hosts
from test_fit_edit import known_questions

from tl_bilinear.hosts import get_host
from tl_bilinear.unlearning import Question
from tl_bilinear.unlearning.bases import down_projections
from tl_bilinear.unlearning.contrast import contrastive_directions
from tl_bilinear.unlearning.moments import answer_moments, halved_moments
from tl_bilinear.unlearning.verdict import COMPONENTS, LayerSeparation, editable


@pytest.fixture(scope="module", params=hosts()[:1])  # the bridge's turn is TransformerLens 4's
def model(request):
    return knowing(request.param)


@pytest.fixture(scope="module")
def sets(model):
    questions = known_questions(model, 12)
    return questions[:3], questions[3:]


def test_the_verdict(model, sets, unchecked):
    forget, retain = sets
    good = editable(model, forget, retain)
    assert good.ok and good.forget_known == good.retain_known == 1 and good.verdict in str(good)
    assert len(good.layers) == 2 and good.forget_known_unseen is None
    for each in good.layers:
        assert 0 <= each.overlap <= 1 and 0 <= share(each) <= 1
    unknown = [Question(f"w{i} w2", " w36 w35", unseen=(f"w{i} w3",)) for i in range(3)]
    bad = editable(model, unknown, retain)
    assert not bad.ok and "knows 0%" in bad.verdict and len(bad.unknown) == 3
    both = editable(model, [*forget, retain[0]], retain)
    assert not both.ok and both.shared_prompts and both.layers == ()
    with pytest.raises(ValueError, match="`retain` is empty"):
        editable(model, forget, [])
    same = editable(model, retain[:4], retain[4:])
    assert good.layers[0].overlap <= 1 and same.ok


def share(layer: LayerSeparation) -> float:
    assert layer.energy_share is not None
    return layer.energy_share


def drawn(n: int, seed: int, ending: str = "") -> list[Question]:
    """Questions of drawn words, twelve wordings of each: nothing tells one set from another but
    what all wordings of it end with."""
    draw = random.Random(seed)

    def wording() -> str:
        words = " ".join(f"w{draw.randrange(37)}" for _ in range(4))
        return f"{words} {ending}".strip()

    return [
        Question(wording(), f" w{draw.randrange(37)}", tuple(wording() for _ in range(11)))
        for _ in range(n)
    ]


def test_what_few_prompts_have_for_themselves_does_not_separate(model):
    """Found and measured in the same wordings two drawn sets are apart, and in others they are
    not; an end that one has and the other lacks separates in any."""
    one, two = drawn(3, 0), drawn(3, 1)
    marked = drawn(3, 0, ending="w7 w7"), drawn(3, 1, ending="w3 w3")
    host = get_host(model)
    bases = down_projections(host, range(host.n_layers))
    mine, other = (answer_moments(host, each, bases) for each in (one, two))
    null, apart = editable(model, one, two).layers, editable(model, *marked).layers
    for layer, here in enumerate(null):
        f, r = (each[layer].features / each[layer].features.trace() for each in (mine, other))
        assert share(here) < contrastive_directions(f, r, COMPONENTS).shares.mean() - 0.1
        assert abs(share(here) - 0.5) < 0.1
    assert share(apart[0]) > share(null[0]) + 0.05  # the first layer: what it reads are the words


def test_halves_of_wordings_make_the_whole(model):
    host = get_host(model)
    bases = down_projections(host, [1])
    questions = drawn(3, 2)
    whole, first, second = halved_moments(host, questions, bases)
    torch.testing.assert_close(
        whole[1].features, answer_moments(host, questions, bases)[1].features
    )
    readings = (first[1].readings + second[1].readings) / 2  # as many sites in either
    torch.testing.assert_close(whole[1].readings, readings)
    by_hand = [Question(q.wordings[0], q.answer, q.wordings[2::2]) for q in questions]
    torch.testing.assert_close(
        first[1].features, answer_moments(host, by_hand, bases)[1].features, rtol=1e-4, atol=1e-7
    )


def test_one_wording_alone_leaves_the_share_out(model):
    one, two = drawn(1, 0), drawn(3, 1)
    bare = [Question(one[0].prompt, one[0].answer)]
    found = editable(model, bare, two)
    assert all(each.energy_share is None for each in found.layers)
    assert "not measured: one wording" in str(found) and "separates" not in found.verdict
    # Questions of one wording each: one half of them against the other.
    singles = [Question(q.prompt, q.answer) for q in two]
    assert all(each.energy_share is not None for each in editable(model, singles, one).layers)
