"""Distillation learns, and resumes bit for bit; bad settings and damaged runs are named."""

import json

import pytest
import torch
from gated import TOKENS, tiny_config, tiny_data, tiny_llama

pytestmark = pytest.mark.one_major(4)


def test_bilinearize_learns_and_leaves_the_teacher_alone():
    from tl_bilinear.conversion import (
        anneal_,
        bilinearize,
        distillation_losses,
        fold_gate_,
        windows,
    )

    teacher = tiny_llama()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    config = tiny_config(n_steps=80, batch_size=32, learning_rate=3e-3)
    student = bilinearize(teacher, tiny_data(), config, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(p.requires_grad for p in teacher.parameters())
    assert student.config.hidden_act == "linear" and teacher.config.hidden_act == "silu"
    control = tiny_llama()
    anneal_(control, beta=0.0)
    fold_gate_(control)

    tokens = windows(tiny_data(), tiny_config(batch_size=64), step=10_000)

    def divergence(model):
        with torch.no_grad():
            losses = distillation_losses(model(tokens).logits, teacher(tokens).logits, tokens)
        assert losses.kl is not None
        return losses.kl

    assert divergence(teacher).abs() < 1e-6
    assert divergence(student) < 0.4 * divergence(control)


def test_losses_are_those_of_torch():
    from torch.nn import functional

    from tl_bilinear.conversion import distillation_losses

    student, teacher = torch.randn(2, 15, 40), torch.randn(2, 15, 40)
    losses = distillation_losses(student, teacher, TOKENS)
    divergence = functional.kl_div(
        student.log_softmax(-1).flatten(0, 1),
        teacher.log_softmax(-1).flatten(0, 1),
        reduction="batchmean",
        log_target=True,
    )
    next_token = functional.cross_entropy(student[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    torch.testing.assert_close(losses.kl, divergence)
    torch.testing.assert_close(losses.next_token, next_token)


def test_resumed_run_equals_uninterrupted_bit_for_bit(tmp_path):
    from tl_bilinear.conversion import bilinearize

    config, data = tiny_config(next_token_weight=0.2, weight_decay=0.1), tiny_data()
    whole = bilinearize(tiny_llama(), data, config, progress=False)
    # stopped at step 3; the global random state differs afterwards, as in a new process
    bilinearize(tiny_llama(), data, config, out_folder=tmp_path, stop_at=3, progress=False)
    torch.manual_seed(99)
    resumed = bilinearize(tiny_llama(), data, config, out_folder=tmp_path, progress=False)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(6))


def test_run_killed_between_checkpoints_resumes_from_the_last(tmp_path, monkeypatch):
    from tl_bilinear.conversion import bilinearize, distillation

    config, data = tiny_config(), tiny_data()
    whole = bilinearize(tiny_llama(), data, config, progress=False)
    train_step = distillation._train_step

    def killed(*args):
        if args[-1] == 5:
            raise KeyboardInterrupt
        return train_step(*args)

    monkeypatch.setattr(distillation, "_train_step", killed)
    options = {"out_folder": tmp_path, "checkpoint_every": 2, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        bilinearize(tiny_llama(), data, config, **options)
    monkeypatch.undo()
    assert torch.load(tmp_path / "training.pt", weights_only=True)["step"] == 4
    resumed = bilinearize(tiny_llama(), data, config, **options)
    state = resumed.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in whole.state_dict().items())


def test_second_run_goes_on_from_a_bilinear_start(tmp_path):
    from tl_bilinear.conversion import bilinearize

    teacher, data = tiny_llama(), tiny_data()
    first = bilinearize(teacher, data, tiny_config(), progress=False)
    before = {k: v.clone() for k, v in first.state_dict().items()}
    config, options = tiny_config(seed=1), {"start": first, "progress": False}
    whole = bilinearize(teacher, data, config, **options)
    assert all(torch.equal(v, before[k]) for k, v in first.state_dict().items())
    assert whole.config.hidden_act == "linear"
    assert not torch.equal(
        whole.get_parameter("lm_head.weight"), first.get_parameter("lm_head.weight")
    )
    bilinearize(teacher, data, config, **options, out_folder=tmp_path, stop_at=3)
    resumed = bilinearize(teacher, data, config, **options, out_folder=tmp_path)
    state = resumed.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in whole.state_dict().items())
    still = bilinearize(
        teacher, data, tiny_config(learning_rate=1e-9, final_learning_rate=0.0), **options
    )
    x = TOKENS[:, :8]  # nothing is folded a second time
    torch.testing.assert_close(still(x).logits, first(x).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="`start` has the gate activation 'silu'"):
        bilinearize(teacher, data, config, start=teacher, progress=False)


def test_windows_depend_on_seed_and_step_alone():
    from tl_bilinear.conversion import windows

    data, config = torch.arange(500), tiny_config()
    first = windows(data, config, 3)
    torch.manual_seed(5)
    assert torch.equal(windows(data, config, 3), first)
    assert not torch.equal(windows(data, config, 4), first)
    assert not torch.equal(windows(data, tiny_config(seed=1), 3), first)
    assert first.shape == (4, 8) and torch.equal(first.diff(dim=1), torch.ones(4, 7).long())
    assert windows(torch.arange(8), config, 0).tolist() == [list(range(8))] * 4


def test_learning_rate_rises_then_falls():
    config = tiny_config(n_steps=100, warmup_steps=10, final_learning_rate=1e-5)
    rates = [config.rate(step) for step in range(101)]
    assert max(rates) == rates[9] == rates[10] == config.learning_rate
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_steps": 0}, "`n_steps` is 0"),
        ({"window": 1}, "`window` is 1"),
        ({"anneal_fraction": 1.5}, "`anneal_fraction` is 1.5"),
        ({"schedule": "cubic"}, "'cubic': expected one of linear, cosine"),
        ({"learning_rate": float("nan")}, "`learning_rate` is nan"),
        ({"next_token_weight": -1.0}, "`next_token_weight` is -1"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


def test_bad_data_is_refused():
    from tl_bilinear.conversion import bilinearize

    model = tiny_llama()
    with pytest.raises(ValueError, match="has 5 tokens, fewer than a window of 8"):
        bilinearize(model, torch.arange(5), tiny_config(), progress=False)
    with pytest.raises(ValueError, match="ids from 0 to 99, but the model has the ids 0 to 39"):
        bilinearize(model, torch.arange(100), tiny_config(), progress=False)
    with pytest.raises(ValueError, match="`window` is 64, but the model's context is 32"):
        bilinearize(model, tiny_data(), tiny_config(window=64), progress=False)


def test_another_run_or_a_damaged_one_is_not_resumed(tmp_path):
    from tl_bilinear.conversion import bilinearize

    options = {"out_folder": tmp_path, "progress": False}
    bilinearize(tiny_llama(), tiny_data(), tiny_config(), stop_at=1, **options)
    with pytest.raises(ValueError, match="holds a run with seed=0, but this one has seed=7"):
        bilinearize(tiny_llama(), tiny_data(), tiny_config(seed=7), **options)
    (tmp_path / "training.pt").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="cannot be read .*: delete it"):
        bilinearize(tiny_llama(), tiny_data(), tiny_config(), **options)
