"""Cutting an operation out of small networks: each edit beside its twin, and with its control."""

from dataclasses import replace

import pytest
import torch

from tl_bilinear.recipes.arithmetic.cuts import (
    LARGEST,
    Evidence,
    Place,
    contrasts,
    eigenmode_cuts,
    mean_inputs,
    projections,
    random_directions,
    unit_cuts,
)
from tl_bilinear.recipes.arithmetic.edit import Edit, Modes, Problem, margin_gradients, margins, run
from tl_bilinear.recipes.arithmetic.outcome import first_that_forgets
from tl_bilinear.recipes.arithmetic.scaled import (
    STRENGTHS,
    scaled_cuts,
    scaled_singly,
    within,
)
from tl_bilinear.recipes.arithmetic.solver import fit_weights
from tl_bilinear.recipes.arithmetic.study import FEW, scaled_contrasts
from tl_bilinear.toys import Activation, ModularConfig, ModularModel, ModularTask, load_modular
from tl_bilinear.toys.mlp import MLP
from tl_bilinear.toys.modular_model import Form
from tl_bilinear.unlearning import held_out_examples

pytestmark = pytest.mark.one_major(4)

HEADS, TOKEN = "mod-p/add-mul-heads-bilinear", "mod-p/add-mul-token-bilinear"


def small(form: Form = "token", activation: Activation = "bilinear"):
    layers = 2 if form == "token" else 1
    config = ModularConfig(5, 2, form, activation, d_model=6, d_mlp=8, n_layers=layers)
    return ModularModel(config, seed=1).double(), ModularTask(5)


@pytest.fixture(scope="module")
def problems():
    """Of each bundled model, the first operation to be forgotten, with its evidence."""
    made = {}
    for name in (HEADS, TOKEN):
        problem = Problem.of(*load_modular(name), 0)
        made[name] = problem, Evidence.of(problem)
    return made


@pytest.mark.parametrize("form", ["heads", "token"])
@pytest.mark.parametrize("activation", ["bilinear", "geglu", "tanh"])
def test_an_empty_edit_is_the_model(form, activation):
    model, task = small(form, activation)
    done = run(model, task)
    torch.testing.assert_close(done.logits, model(task.pairs), rtol=1e-12, atol=1e-12)
    right = done.logits.argmax(-1) == task.targets
    assert ((margins(done.logits, task) > 0) == right).all()


@pytest.mark.parametrize("form", ["heads", "token"])
def test_edits_are_edited_weights(form):
    """What an edit does to activations is done to a copy of the model's weights instead."""
    model, task = small(form)
    place = Place(0, "outputs")
    problem = replace(Problem.of(model, task, 0), known=torch.ones(2, 25, dtype=torch.bool))
    directions = contrasts(Evidence.of(problem), place, "gradients").truncate(2)
    units = torch.tensor([True, False] * 4)
    weights = torch.randn(8, 6).double()
    modes = Modes(torch.randn(3, 6).double(), torch.randn(3).double(), torch.randn(3, 6).double())
    twins = {
        "outputs": (
            Edit(outputs={0: directions}),
            lambda mlp: mlp.W_out.copy_(mlp.W_out @ directions.projection()),
        ),
        "units": (Edit(units={0: units}), lambda mlp: mlp.W_out.mul_(~units[:, None])),
        "weights": (Edit(weights={0: weights}), lambda mlp: mlp.W_out.add_(weights)),
        "inputs": (Edit(inputs={0: directions}), lambda mlp: _read(mlp, directions.projection())),
        "modes": (Edit(modes={0: modes}), lambda mlp: _append(mlp, modes)),
    }
    plain = run(model, task).logits
    for name, (edit, change) in twins.items():
        twin = ModularModel(model.config).double()
        twin.load_state_dict(model.state_dict())
        with torch.no_grad():
            change(twin.mlps[0])
        edited = run(model, task, edit).logits
        torch.testing.assert_close(
            edited, twin(task.pairs), rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert (edited - plain).abs().max() > 1e-3
    twice = run(model, task, Edit(outputs={0: directions}, strength=2.0)).outputs[0]
    once = run(model, task, Edit(outputs={0: directions})).outputs[0]
    torch.testing.assert_close(twice - once, once - run(model, task).outputs[0])


@pytest.mark.parametrize("form", ["heads", "token"])
def test_what_lies_before_an_edit_is_not_computed_anew(form, monkeypatch):
    """The same numbers to the bit, from the unedited pass."""
    model, task = small(form)
    problem = Problem.of(model, task, 0)
    last = len(model.mlps) - 1
    directions = contrasts(Evidence.of(problem), Place(last, "outputs"), "gradients").truncate(2)
    units, weights = torch.tensor([True, False] * 4), torch.randn(8, 6).double()
    modes = Modes(torch.randn(3, 6).double(), torch.randn(3).double(), torch.randn(3, 6).double())
    edits = {
        "nothing": (Edit(), 0),
        "outputs": (Edit(outputs={last: directions}), 0),
        "weights": (Edit(weights={last: weights}), 0),
        "modes": (Edit(modes={last: modes}), 0),
        "units": (Edit(units={last: units}), 0),
        "inputs": (Edit(inputs={last: directions}), 1),
        "every layer": (Edit(outputs=dict.fromkeys(range(last + 1), directions)), last),
        "both": (Edit(inputs={last: directions}, outputs={0: directions}), 1),
    }
    if form == "token":
        edits["tokens"] = Edit(tokens={0: 1}, outputs={last: directions}), 2
    expected = {name: run(model, task, edit) for name, (edit, _) in edits.items()}
    calls: list[int] = []
    hidden = MLP.hidden
    monkeypatch.setattr(MLP, "hidden", lambda self, x: (calls.append(1), hidden(self, x))[1])
    for name, (edit, layers) in edits.items():
        calls.clear()
        found, whole = problem.run(edit), expected[name]
        assert len(calls) == layers, name
        assert torch.equal(found.logits, whole.logits) and torch.equal(found.final, whole.final)
        for one, other in zip(found.layers, whole.layers, strict=True):
            assert all(map(torch.equal, one, other)), name


def _read(mlp: MLP, projection):
    for weight in mlp.parameters():
        if weight is not mlp.W_out:
            weight.copy_(projection @ weight)


def _append(mlp: MLP, modes: Modes):
    """Modes as extra neurons that subtract them."""
    columns = modes.vectors.T
    for name, new in (("W_gate", columns), ("W_in", columns * modes.values)):
        setattr(mlp, name, torch.nn.Parameter(torch.cat([getattr(mlp, name), new], dim=1)))
    mlp.W_out = torch.nn.Parameter(torch.cat([mlp.W_out, -modes.writes]))


@pytest.mark.parametrize("form", ["heads", "token"])
def test_margin_gradients_are_those_of_each_pair_and_operation(form):
    model, task = small(form)
    done, values, gradients = margin_gradients(model, task)
    torch.testing.assert_close(values, margins(done.logits, task))
    for layer in range(model.config.n_layers):
        moved = Edit(weights={layer: torch.zeros(8, 6).double()})
        for op in (0, 1):
            # A change of W_out moves a pair by its hidden units times that change.
            change = torch.randn(8, 6).double() * 1e-6
            after = run(model, task, replace(moved, weights={layer: change}))
            hidden = done.of_task(done.hidden[layer], op)
            expected = ((hidden @ change) * gradients["outputs"][layer][op]).sum(-1)
            difference = margins(after.logits, task)[op] - values[op]
            torch.testing.assert_close(difference, expected, rtol=1e-3, atol=1e-9)
    assert gradients["inputs"][0][0].shape == (25, 6)


@pytest.mark.parametrize("name", [HEADS, TOKEN])
def test_few_contrastive_modes_forget_and_random_ones_do_not(problems, name):
    problem, evidence = problems[name]
    place = Place(0, "outputs")
    kind = "gradients" if name == HEADS else "activations"
    directions = contrasts(evidence, place, kind)
    _, removed = first_that_forgets(problem, projections(place, directions))
    assert removed.forgets and removed.size <= 7 and removed.retain > 0.97
    _, reversed_ = first_that_forgets(problem, projections(place, directions, strength=2.0))
    assert reversed_.forgets and reversed_.size <= 5 and reversed_.retain > 0.97
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        drawn = random_directions(evidence, place, generator)
        torch.testing.assert_close(drawn.readers @ drawn.writers.T, torch.eye(32).double())
        _, random = first_that_forgets(problem, projections(place, drawn))
        assert random.retain < 0.3 and random.size > 15
        few = problem.accuracies(Edit(outputs={0: drawn.truncate(int(removed.size))}))
        assert few.forget > 0.4  # as many random directions hardly do anything


@pytest.mark.parametrize("name", [HEADS, TOKEN])
def test_scaled_cuts_are_the_least_strengths_of_all(problems, name):
    """Bisection beside every strength tried in turn."""
    problem, evidence = problems[name]
    place = Place(0, "outputs")
    directions = contrasts(evidence, place, "gradients" if name == HEADS else "activations")
    found = {
        edit.size: (edit, outcome) for edit, outcome in scaled_cuts(problem, place, directions)
    }
    last = max(found)
    for k in range(1, last + 1):
        least = None
        for strength in STRENGTHS:
            edit = Edit(k, outputs={0: directions.truncate(k)}, strength=strength)
            scores = problem.accuracies(edit)
            if scores.forget <= LARGEST:
                least = strength
                break
        assert (least is None) == (k not in found)
        if least is not None:
            edit, outcome = found[k]
            assert edit.strength == least and outcome.retain == scores.retain and outcome.size == k
    assert [k for k, (edit, _) in found.items() if edit.strength == 1] == [last]
    assert min(found) < last  # scaled, fewer modes forget


def test_what_never_forgets_is_scaled_to_the_end(problems):
    problem, evidence = problems[HEADS]
    place = Place(0, "outputs")
    drawn = random_directions(evidence, place, torch.Generator().manual_seed(0)).truncate(2)
    ((edit, outcome),) = scaled_cuts(problem, place, drawn)
    assert edit.strength == 2 and edit.size == outcome.size == 2 and not outcome.forgets


@pytest.mark.parametrize("name", [HEADS, TOKEN])
def test_single_factors_are_no_worse_than_one_for_all(problems, name):
    problem, evidence = problems[name]
    place = Place(0, "outputs")
    directions = contrasts(evidence, place, "gradients" if name == HEADS else "activations")
    gains = []
    for start, common in scaled_cuts(problem, place, directions.truncate(5)):
        edit, single = scaled_singly(problem, start)
        assert single.forgets and single.retain >= common.retain and edit.size == start.size
        gains.append(single.retain - common.retain)
        # Factors are in the writers: what is taken out, component by component.
        factors = edit.outputs[0].writers.norm(dim=1) / start.outputs[0].writers.norm(dim=1)
        assert (factors >= 0).all() and edit.strength == 1
        y = torch.randn(3, 32).double()
        amplitudes = start.outputs[0].amplitudes(y)
        expected = y - (amplitudes * factors) @ start.outputs[0].writers
        torch.testing.assert_close(edit.outputs[0].removed(y), expected)
        scores = problem.accuracies(edit)
        assert (scores.forget, scores.retain) == (single.forget, single.retain)
    assert name == HEADS or max(gains) > 0  # the other retains all with one factor
    # As few random ones do not forget, whatever their factors.
    drawn = random_directions(evidence, place, torch.Generator().manual_seed(0)).truncate(5)
    _, outcome = scaled_singly(problem, Edit(5, outputs={0: drawn}))
    assert not outcome.forgets


@pytest.mark.parametrize("name", [HEADS, TOKEN])
def test_an_edit_chosen_on_half_of_the_pairs_holds_on_the_others(problems, name, unchecked):
    problem, _ = problems[name]
    half = torch.stack([held_out_examples(31**2, 0.5, seed) for seed in (0, 1)])
    mine = within(problem, half)
    assert (mine.known == problem.known & half).all()
    evidence = Evidence.of(mine)
    rows = evidence.activations[Place(0, "outputs")]
    assert [len(each) for each in rows] == mine.known.sum(1).tolist()
    for edit, there in scaled_contrasts(evidence).values():
        assert there.forgets and there.retain >= 0.98
        scores = problem.accuracies(edit, ~half)
        assert scores.forget < 0.25 and scores.retain > 0.95
    assert edit.size <= FEW


def test_units_and_eigenmodes_forget_and_random_units_do_not(problems):
    problem, evidence = problems[TOKEN]
    for cuts in (unit_cuts(evidence), eigenmode_cuts(evidence), eigenmode_cuts(evidence, True)):
        _, outcome = first_that_forgets(problem, cuts)
        assert outcome.forgets and outcome.retain > 0.9 and outcome.retain_trained > 0.9
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    assert first_that_forgets(problem, unit_cuts(evidence, order))[1].retain < 0.5


def test_all_units_of_all_layers_are_cut_at_last(problems):
    problem, evidence = problems[TOKEN]
    *_, last = unit_cuts(evidence)
    assert last.size == 96
    stream = problem.model.embed(problem.task.pairs)
    torch.testing.assert_close(problem.run(last).logits, problem.model.unembed(stream))


def test_the_retained_mean_is_nearly_the_other_token():
    """add + sub with a task token: the model answers the retained operation to both tokens."""
    model, task = load_modular("mod-p/add-sub-token-bilinear")
    problem = Problem.of(model, task, 0)
    edit = mean_inputs(problem)
    scores = problem.accuracies(edit)
    # Numbers lie along the tokens' difference too, and so the retained operation suffers.
    assert scores.forget < 0.1 and 0.6 < scores.retain < 1 and edit.size == 2
    for layer, directions in edit.inputs.items():
        mean = problem.run(edit).inputs[layer][1][problem.known[1]].double().mean(0)
        amplitude = directions.amplitudes(mean - edit.centres[layer])
        torch.testing.assert_close(amplitude, torch.zeros(1).double(), rtol=0, atol=1e-5)
    logits = problem.run(Edit(tokens={0: 1})).logits
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[1], problem.run().logits[1])


def test_the_solver_forgets_what_it_was_fitted_on(problems):
    problem, _ = problems[HEADS]
    fitted = torch.rand(2, 961, generator=torch.Generator().manual_seed(0)) < 0.5
    found = fit_weights(problem, fitted)
    on_fitted, on_others = (problem.accuracies(found.edit, part) for part in (fitted, ~fitted))
    assert on_fitted.forget < 0.02 and on_fitted.retain > 0.98 and on_others.retain > 0.95
    assert on_others.forget < 0.3 and 0 < found.rank <= 32
    assert list(found.history) == sorted(found.history, reverse=True)


def test_the_solver_stops_where_nothing_comes_closer():
    """Forget and retain the same answers of the same inputs: no step helps, and it says so."""
    model, task = small("heads")
    with torch.no_grad():
        model.W_U[:, 5:] = model.W_U[:, :5]  # both heads read the same
    same = replace(Problem.of(model, task, 0), known=torch.ones(2, 25, dtype=torch.bool))
    task.targets[1] = task.targets[0]
    found = fit_weights(same, torch.ones(2, 25, dtype=torch.bool), n_steps=4)
    assert found.history[-1] > 0.3 * found.history[0] and len(found.history) <= 5
    for weights in found.edit.weights.values():
        assert torch.isfinite(weights).all()
