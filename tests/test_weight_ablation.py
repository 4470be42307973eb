"""Ablation in the weights: hook = weights = tensor subtraction, on every host, saved and undone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FAMILIES, bridge_of, family, hooked_of
from models import hosts, native
from torch import Tensor
from weight_edits import TOKENS, close, hooked, logits_of, near_modes, plain_transformers

import tl_bilinear as tlb

NORMS = ("LN", "RMS", "LNPre", None)


def zero_gains_(model: Any) -> None:
    """An entry of one norm's gain that is zero, and one that is nearly so."""
    gain = tlb.get_host(model).mlp_norm(1).gain
    if gain is not None:
        with torch.no_grad():
            gain[3], gain[5] = 0.0, 1e-9


def tolerance(model: Any) -> float:
    """Native RMSNorms compute in float32, as Hugging Face's do (DESIGN 5)."""
    rms = str(model.cfg.normalization_type).upper().startswith("RMS")
    return 1e-6 if rms and tlb.get_host(model).kind == "TransformerBridge" else 1e-9


def mlp_change(model: Any, edit_: Callable[[], Any]) -> tuple[Tensor, Tensor]:
    """Normalised inputs, and by what an edit of weights changes the MLP's own output for them."""
    host = tlb.get_host(model)
    norm = host.mlp_norm(1)
    x = norm.normalize(torch.randn(1, 9, host.d_model, dtype=torch.float64))
    m = x if norm.gain is None else x * norm.gain
    m = m if norm.bias is None else m + norm.bias
    before = host.run_mlp(1, m)
    edit_()
    return x, host.run_mlp(1, m) - before


def dense(modes: list[tlb.Mode], x: Tensor, scale: float) -> Tensor:
    """What is to be subtracted, from the dense tensor and least squares in U."""
    u = torch.stack([mode.direction for mode in modes]).unique(dim=0)
    tensor = torch.zeros(len(u), x.shape[-1], x.shape[-1], dtype=torch.float64)
    for mode in modes:
        row = int((u == mode.direction).all(1).nonzero())
        tensor[row] += mode.eigenvalue * torch.outer(mode.eigenvector, mode.eigenvector)
    solve = torch.linalg.lstsq(u, torch.eye(len(u), dtype=torch.float64)).solution
    return (1 - scale) * torch.einsum("cij,bpi,bpj->bpc", tensor, x, x) @ solve.T


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize(("norm", "scale"), list(zip(NORMS, (0.0, -1.0, 0.5, 0.0), strict=True)))
def test_neurons_are_the_hook_and_the_tensor_subtracted(host, norm, scale):
    model = native(norm, host)
    zero_gains_(model)
    modes = near_modes(model)
    modes.append(tlb.Mode(0, modes[0].direction, 0.7, modes[0].eigenvector))
    before, expected = logits_of(model), hooked(model, tlb.ablate(model, modes, scale))
    assert (expected - before).abs().max() > 1e-2
    done = []
    x, change = mlp_change(model, lambda: done.append(tlb.ablate_(model, modes, scale=scale)))
    close(change, -dense(modes[:6], x, scale), 1e-9)
    close(logits_of(model), expected, tolerance(model))
    tlb.self_check(model)
    (edit,) = done
    assert (edit.kind, edit.d_mlp) == ("masking", (24, 30)) and model.cfg.d_mlp == 30
    assert [part.added_neurons for part in edit.layers] == [1, 6]
    assert max(part.error for part in edit.layers) < 1e-12
    weights = tlb.get_host(model).mlp_weights(0)
    assert not weights.tensor.left[:, 25:].any() and not weights.tensor.out[:, 25:].any()
    tlb.undo_(model, edit.ledger)
    assert torch.equal(logits_of(model), before) and model.cfg.d_mlp == 24


@pytest.mark.parametrize("host", hosts())
def test_a_layer_norm_needs_no_bias_in_the_mlp(host):
    """The direction that centring takes out of the stream makes it up."""
    model = native("LN", host)
    view = tlb.get_host(model)
    assert view.mlp_norm(1).bias.abs().max() > 0.1  # pyright: ignore[reportOptionalMemberAccess]
    tlb.ablate_(model, near_modes(model))
    assert not view.mlp_weights(1).left_bias[24:].any()


def test_a_reading_that_the_norm_hides_is_refused():
    model = native("RMS", hosts()[0])
    zero_gains_(model)
    vector = torch.zeros(16, dtype=torch.float64)
    vector[3] = 1.0
    hidden = tlb.Mode(1, torch.randn(16, dtype=torch.float64), 1.0, vector)
    before = logits_of(model)
    with pytest.raises(ValueError, match="layer 1 cannot read this .* gain of its norm is zero"):
        tlb.ablate_(model, hidden)
    with pytest.raises(ValueError, match="cannot read"):
        tlb.project_inputs_(model, tlb.InputMode(1, vector))
    assert torch.equal(logits_of(model), before)


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize(("norm", "scale"), list(zip(NORMS, (0.0, 0.0, -0.5, -0.5), strict=True)))
@pytest.mark.parametrize("side", ["outputs", "inputs"])
def test_projections_are_the_hook_and_the_dense_map(host, norm, side, scale):
    model = native(norm, host)
    if side == "outputs":
        zero_gains_(model)
    kind: Any = tlb.OutputMode if side == "outputs" else tlb.InputMode
    rows = torch.randn(2, 16, dtype=torch.float64)
    modes = [kind(1, rows[0]), kind(1, rows[1]), kind(1, rows[0] + rows[1])]
    projector = torch.linalg.lstsq(rows.T, torch.eye(16, dtype=torch.float64)).solution
    projector = (1 - scale) * (rows.T @ projector)
    view = tlb.get_host(model)
    layer = view.mlp_map(1).to(torch.float64, copy=True)
    by_hook: Any = tlb.project_outputs if side == "outputs" else tlb.project_inputs
    by_weights: Any = tlb.project_outputs_ if side == "outputs" else tlb.project_inputs_
    before, expected = logits_of(model), hooked(model, by_hook(model, modes, scale))
    assert (expected - before).abs().max() > 1e-2
    done = []
    x, change = mlp_change(model, lambda: done.append(by_weights(model, modes, scale=scale)))
    exact = -layer(x) @ projector if side == "outputs" else layer(x - x @ projector) - layer(x)
    close(change, exact, 1e-9)
    close(logits_of(model), expected, tolerance(model))
    (edit,) = done
    assert edit.kind == ("removal" if scale == 0 else "masking") and edit.d_mlp == (24, 24)
    tlb.undo_(model, edit.ledger)
    assert torch.equal(logits_of(model), before)


def mean_twin(model: Any, modes: list[tlb.Mode], rows: list[Tensor]) -> Tensor:
    """Each mode's (v.x)^2 replaced by its mean, by hand."""
    host = tlb.get_host(model)
    site, seen = host.mlp_input_site(1), {}
    streams = [host.read(row[None], [site])[1][site][0, 1:] for row in rows]
    x = torch.cat(streams)
    mean = dense(modes, x[None], 0.0).mean(1)

    def replace(value: Tensor, hook: Any) -> Tensor:
        return value - dense(modes, seen["x"], 0.0) + mean

    sites = [(site, lambda value, hook: seen.update(x=value)), (host.mlp_out_site(1), replace)]
    return hooked(model, host.hooks(sites))


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("norm", ["LN", "RMS"])
def test_mean_ablation_by_hook_and_in_the_weights(host, norm):
    model = native(norm, host)
    modes, rows = near_modes(model), [torch.arange(9), torch.tensor([3, 1, 4, 1, 5])]
    expected = mean_twin(model, modes, rows)
    found = hooked(model, tlb.ablate(model, modes, "mean", texts=rows))
    close(found, expected, 1e-9)
    assert (found - hooked(model, tlb.ablate(model, modes))).abs().max() > 1e-2
    edit = tlb.ablate_(model, modes, scale="mean", texts=rows)
    close(logits_of(model), expected, tolerance(model))
    assert edit.tokens == 12 and edit.kl is not None and edit.kl > 0
    tlb.undo_(model, edit.ledger)


@pytest.mark.parametrize("name", ["StableLM", "Phi3", "GLM", "Gemma 2", "OLMo2"])
@pytest.mark.parametrize("host", hosts())
def test_other_families_hold_the_edit(name, host, tmp_path):
    """LayerNorm without MLP biases, fused gates, norms behind the MLP, gains of 1 + w."""
    if host == "hooked_transformer":
        model = hooked_of(family(name))
    else:
        model = bridge_of(family(name), name)
    modes = [tlb.Mode(m.layer, m.direction, m.eigenvalue, m.eigenvector) for m in near_modes(model)]
    expected = hooked(model, tlb.ablate(model, modes))
    assert (expected - logits_of(model)).abs().max() > 1e-2
    tlb.ablate_(model, modes)
    close(logits_of(model), expected, 2e-5)
    tlb.self_check(model)
    folder = tlb.save_pretrained(model, tmp_path / "edited")
    found = plain_transformers(folder, torch.float32)
    assert type(found).__name__ == FAMILIES[name] and found.config.intermediate_size == 30
    close(logits_of(found).log_softmax(-1), expected.log_softmax(-1), 2e-5)


@pytest.mark.parametrize(("norm", "host"), [("RMS", hosts()[0]), ("LN", hosts()[-1])])
def test_a_refit_leaves_no_original_neuron(host, norm):
    model = native(norm, host)
    view, modes = tlb.get_host(model), near_modes(model)
    before, old = logits_of(model), view.mlp_weights(1).to(torch.float64, copy=True)
    exact = hooked(model, tlb.ablate(model, modes))
    edit = tlb.ablate_(model, modes, "refit", steps=100)
    (part,) = edit.layers
    assert (edit.kind, edit.d_mlp, part.added_neurons) == ("removal", (24, 24), 0)
    assert part.error < 0.6 and abs(part.left_over) < 0.05
    assert (logits_of(model) - exact).norm() < 0.6 * (before - exact).norm()
    assert part.smallest_distance is not None and part.smallest_distance > 1e-3
    assert part.smallest_distance == pytest.approx(nearest(view.mlp_weights(1), old), rel=1e-6)
    assert "no neuron nearer than" in str(edit)


def nearest(a: Any, b: Any) -> float:
    """The smallest distance of two neurons, dense."""

    def products(weights: Any) -> Tensor:
        t = weights.tensor
        found = torch.einsum("or,ir,jr->roij", t.out, t.left, t.right)
        found = (found + found.mT).flatten(1)
        return found / found.norm(dim=1, keepdim=True)

    first, second = products(a), products(b)
    both = [torch.cdist(first, sign * second).min() for sign in (1, -1)]
    return float(min(both))


def test_a_layer_with_room_is_refitted_exactly():
    """With more neurons than quadratic forms every tensor is within reach."""
    model = native("RMS", hosts()[0], d_model=4, d_head=2, n_heads=2, d_mlp=24)
    modes = near_modes(model, count=1)
    edit = tlb.ablate_(model, modes, "refit", steps=200)
    assert edit.layers[0].error < 1e-3 and abs(edit.layers[0].left_over) < 1e-4


# ---- what is said, and what goes wrong -----------------------------------------------------------


@pytest.mark.parametrize("host", hosts())
def test_the_direct_effect_is_known_beforehand_and_measured(host):
    """In the last layer, as long as the final norm's denominator stays, they agree."""
    model = native("RMS", host)
    modes = near_modes(model)
    small = [tlb.Mode(m.layer, m.direction, 1e-4 * m.eigenvalue, m.eigenvector) for m in modes]
    direction = torch.randn(16, dtype=torch.float64)
    ends = []
    for some in (small, modes):
        edit = tlb.ablate_(model, some, prompt=TOKENS[0], target=direction)
        assert edit.target is not None
        ends.append(edit.target)
        assert "foreseen directly" in str(edit)
        tlb.undo_(model, edit.ledger)
    u = tlb.get_host(model).fold_readout(direction)
    x = tlb.get_host(model).read_streams(TOKENS[:1], [1])[1][:, -1:].double()
    scale = tlb.get_host(model).read(TOKENS[:1], ["ln_final.hook_scale"])[1]
    expected = -dense(modes, x, 0.0)[0, 0] @ u / scale["ln_final.hook_scale"][0, -1, 0]
    assert ends[1].direct == pytest.approx(float(expected), rel=1e-5)
    # The denominator moves with the edit, so the two agree to first order in its size.
    assert ends[0].direct == pytest.approx(1e-4 * ends[1].direct, rel=1e-9)
    assert ends[1].change != pytest.approx(ends[1].direct, rel=1e-3)


def test_bad_input_leaves_the_model_as_it_was(monkeypatch, unchecked):
    model = native("RMS", hosts()[0])
    modes, before = near_modes(model), logits_of(model)
    cases: dict[str, Callable[[], Any]] = {
        "`how` must be": lambda: tlb.ablate_(model, modes, "delete"),  # pyright: ignore
        "`modes` is empty": lambda: tlb.ablate_(model, []),
        "has layers 0-1": lambda: tlb.ablate_(
            model, tlb.Mode(2, modes[0].direction, 1.0, modes[0].eigenvector)
        ),
        "belong together": lambda: tlb.ablate_(model, modes, prompt=TOKENS[0]),
        "needs `texts`": lambda: tlb.ablate_(model, modes, scale="mean"),
        '`texts` are for scale="mean"': lambda: tlb.ablate(model, modes, texts=[]).__enter__(),
        "no token behind": lambda: tlb.ablate_(model, modes, scale="mean", texts=[]),
        "must be finite": lambda: tlb.ablate(model, modes, float("nan")).__enter__(),
        "OutputMode at least": lambda: tlb.project_outputs_(model, []),
        "is of layer 7": lambda: tlb.project_inputs_(model, tlb.InputMode(7, torch.ones(16))),
        "a finite direction": lambda: tlb.project_outputs_(
            model, tlb.OutputMode(0, torch.zeros(16))
        ),
    }
    for words, call in cases.items():
        with pytest.raises(ValueError, match=words):
            call()
        assert torch.equal(logits_of(model), before)

    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("tl_bilinear.ablation.weight_edit._layer_change", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tlb.ablate_(model, modes)
    assert torch.equal(logits_of(model), before) and model.cfg.d_mlp == 24
