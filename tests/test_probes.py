"""Ridge probes beside the normal equations written out, and what they must and cannot find."""

from typing import Any

import pytest
import torch

from tl_bilinear.unlearning.probes import held_out_examples, ridge_probe

pytestmark = pytest.mark.one_major(4)


def written_out(x, labels, held_out, ridge, degree):
    """Held-out predictions by explicit features, an intercept and the normal equations."""
    fitted = x[~held_out]
    x = x - fitted.mean(0)
    x = x / x[~held_out].square().sum(1).mean().sqrt()
    if degree == 2:  # every feature of (1 + x . y)^2
        pairs = (x[:, :, None] * x[:, None, :]).flatten(1)
        x = torch.cat([torch.ones(len(x), 1).double(), 2**0.5 * x, pairs], dim=1)
    x = x - x[~held_out].mean(0)
    a, targets = x[~held_out], torch.nn.functional.one_hot(labels[~held_out]).double()
    unit = a.square().sum() / (min(a.shape) if degree == 1 else len(a))
    weights = torch.linalg.solve(
        a.T @ a + ridge * unit * torch.eye(a.shape[1]).double(), a.T @ (targets - targets.mean(0))
    )
    return (x[held_out] @ weights + targets.mean(0)).argmax(1)


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("d", [4, 40])
def test_a_probe_is_the_ridge_regression_written_out(degree, d):
    x, labels = torch.randn(80, d).double(), torch.randint(0, 3, (80,))
    x[:, 0] += labels  # something to be found, with errors
    held_out = held_out_examples(80, 0.4)
    for ridge in (1e-3, 0.3):
        found = ridge_probe(x, labels, held_out, degree=degree, ridges=(ridge,))
        twin = written_out(x, labels, held_out, ridge, degree)
        assert found.accuracy == float((twin == labels[held_out]).double().mean())
        assert (found.ridge, found.n_fitted, found.n_held_out) == (ridge, 48, 32)
        assert 0 < found.accuracy < 1


@pytest.mark.parametrize("degree", [1, 2])
def test_leave_one_out_is_refitting_without_each(degree):
    """The chosen penalty is that of the least error of n refitted probes."""
    from tl_bilinear.unlearning.probes import _Basis

    x, labels = torch.randn(14, 3).double(), torch.randint(0, 2, (14,))
    x[:, 1] += 2 * labels
    ridges = (1e-4, 1e-2, 1.0, 100.0)
    basis = _Basis.of(x, x, degree)
    kernel = (basis.left * basis.values) @ basis.left.T
    unit = basis.values.sum() / len(basis.values)
    targets = torch.nn.functional.one_hot(labels, 2).double()
    errors = []
    for ridge in ridges:
        error = 0.0
        for i in range(14):
            rest = [j for j in range(14) if j != i]
            inner = kernel[rest][:, rest] + ridge * unit * torch.eye(13).double()
            # An unpenalised intercept: the saddle-point system of 13 examples and a constant.
            system = torch.zeros(14, 14).double()
            system[:13, :13], system[:13, 13], system[13, :13] = inner, 1, 1
            right = torch.cat([targets[rest], torch.zeros(1, 2).double()])
            solved = torch.linalg.solve(system, right)
            predicted = kernel[i, rest] @ solved[:13] + solved[13]
            error += float((targets[i] - predicted).square().mean())
        errors.append(error)
    assert basis.measured(labels, labels, ridges)[1] == ridges[errors.index(min(errors))]


def test_linear_and_quadratic_probes_find_what_is_theirs():
    x = 2 * torch.rand(400, 6).double() - 1  # even: a product of normals is mostly near 0
    held_out = held_out_examples(400, 0.5)
    linear = (x[:, 0] + 0.5 * x[:, 1] > 0).long()
    product = (x[:, 0] * x[:, 1] > 0).long()
    assert ridge_probe(x, linear, held_out).accuracy > 0.9
    assert ridge_probe(x, product, held_out, degree=2).accuracy > 0.85
    blind = ridge_probe(x, product, held_out)
    assert abs(blind.accuracy - 0.5) < 0.12 and abs(blind.gain) < 0.15


def test_shuffled_labels_are_not_found_and_the_majority_is():
    x, labels = torch.randn(300, 20), (torch.rand(300) < 0.2).long()
    x[:, 0] += 6 * labels
    probe = ridge_probe(x, labels, held_out_examples(300), n_controls=4)
    assert probe.accuracy > 0.95 and len(probe.controls) == 4
    assert abs(probe.control - probe.majority) < 0.08 and probe.gain > 0.1
    assert probe.majority == pytest.approx(0.8, abs=0.06)
    assert ridge_probe(x, labels, held_out_examples(300), n_controls=4) == probe
    bare = ridge_probe(x, labels, held_out_examples(300), n_controls=0)
    assert bare.accuracy == probe.accuracy and bare.control != bare.control  # NaN


@pytest.mark.parametrize("degree", [1, 2])
def test_features_that_are_all_alike_give_the_majority(degree):
    labels = torch.tensor([0, 0, 0, 1, 0, 1])
    held_out = torch.tensor([False] * 4 + [True] * 2)
    probe = ridge_probe(torch.ones(6, 2), labels, held_out, degree=degree)
    assert probe.accuracy == probe.majority == 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(labels=torch.zeros(3).long()), "got shapes"),
        (dict(held_out=torch.zeros(4).bool()), "0 of 4 examples"),
        (dict(held_out=torch.tensor([True, True, True, False])), "3 of 4 examples"),
        (dict(features=torch.ones(4, 2) * float("inf")), "not finite"),
        (dict(labels=torch.tensor([0, -1, 1, 1])), "0 or above"),
        (dict(degree=3), "quadratic"),
        (dict(ridges=()), "above 0"),
        (dict(ridges=(0.0,)), "above 0"),
        (dict(n_controls=-1), "0 or more"),
    ],
)
def test_bad_input(change, words, unchecked):
    arguments: dict[str, Any] = dict(
        features=torch.randn(4, 2),
        labels=torch.tensor([0, 1, 0, 1]),
        held_out=torch.tensor([True, False, False, False]),
    )
    with pytest.raises(ValueError, match=words):
        ridge_probe(**arguments | change)
    with pytest.raises(ValueError, match="at least two"):
        held_out_examples(1)
