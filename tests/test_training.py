"""Training learns on every host and module, and a killed run ends where a whole one does."""

import errno
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gated import tiny_llama
from models import hosts, native
from torch import nn
from torch.nn import functional

import tl_bilinear as tlb
from tl_bilinear.optimisation import ShuffledBatches, TokenWindows, learning_rate
from tl_bilinear.training import TrainingConfig, next_token_loss, train
from tl_bilinear.training.noise import latent_noise, mlps


class Xor(nn.Module):
    """A bilinear module without any host: f(x) = D((Lx) * (Rx)), dropout on its input."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(3, 4)
        self.out, self.drop = nn.Linear(4, 2), nn.Dropout(0.1)

    def forward(self, x):
        x = self.drop(x)
        return self.out(self.left(x) * self.right(x))


def xor_data() -> ShuffledBatches:
    x = torch.randint(0, 2, (60, 3), generator=torch.Generator().manual_seed(1)).float()
    return ShuffledBatches(x, (x[:, 0] != x[:, 1]).long(), batch_size=20)


def class_loss(model, batch):
    x, y = batch
    return functional.cross_entropy(model(x), y)


def xor(config: TrainingConfig, **options: Any) -> Xor:
    torch.manual_seed(0)
    return train(Xor(), xor_data(), config, loss=class_loss, progress=False, **options)


def repeats() -> TokenWindows:
    """Text in which every token follows from the one before it."""
    return TokenWindows(torch.arange(40).repeat(30), batch_size=8, window=12)


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(one, two) for one, two in pairs)


@pytest.mark.parametrize("host", [*hosts(), "transformers"])
def test_language_models_learn_and_stay_bilinear(host: str):
    if host == "transformers":
        model = tiny_llama("linear", tie_word_embeddings=False)
    else:
        model = native("RMS", host, torch.float32)
    with torch.no_grad():
        before = next_token_loss(model, repeats()(10_000)).item()
    config = TrainingConfig(n_steps=60, learning_rate=2e-2, warmup_steps=5, latent_noise=0.1)
    trained = train(model, repeats(), config, progress=False)
    assert trained is model and not model.training
    with torch.no_grad():
        after = next_token_loss(model, repeats()(10_000)).item()
    assert after < 0.5 * before
    if host != "transformers":
        tlb.self_check(model)


def test_a_plain_module_learns_xor():
    config = TrainingConfig(n_steps=400, learning_rate=2e-2, warmup_steps=0, weight_decay=0.0)
    model = xor(config).eval()
    batches = xor_data()
    assert (model(batches.x).argmax(-1) == batches.y).all()


@pytest.mark.parametrize("make", [xor, None])
def test_a_killed_run_ends_where_a_whole_one_does(make: Callable | None, tmp_path):
    """Noise, dropout and batches included; the global random state differs in between."""
    config = TrainingConfig(n_steps=9, warmup_steps=2, latent_noise=0.33 if make is None else 0)

    def run(**options: Any) -> nn.Module:
        if make is not None:
            return make(config, **options)
        model = native("LN", hosts()[0], torch.float32)
        return train(model, repeats(), config, progress=False, **options)

    whole = run()
    run(out_folder=tmp_path, stop_at=4)
    torch.manual_seed(99)
    killed = KeyboardInterrupt()

    def kill(model: nn.Module) -> dict[str, float]:
        raise killed

    with pytest.raises(KeyboardInterrupt):
        run(out_folder=tmp_path, checkpoint_every=2, evaluate=kill, evaluate_every=7)
    assert torch.load(tmp_path / "training.pt", weights_only=True)["step"] == 6
    assert same(run(out_folder=tmp_path), whole)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(9))
    assert not same(run(stop_at=8), whole)


def test_randomness_is_the_steps_own_and_the_callers_is_put_back():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    model = Xor()
    torch.manual_seed(5)
    train(model, xor_data(), TrainingConfig(n_steps=2), loss=class_loss, progress=False)
    assert torch.equal(torch.rand(1), expected)


def test_latent_noise_is_in_units_of_the_inputs_deviation():
    module, seen = nn.Identity(), []
    x = 7 * torch.randn(20_000, 3) + 2
    with latent_noise([module], 0.33):
        module.register_forward_hook(lambda _, args, __: seen.append(args[0]))
        module(x)
    noise = seen[0] - x
    assert math.isclose(float(noise.std()), 0.33 * float(x.std()), rel_tol=0.02)
    assert abs(float(noise.mean())) < 0.05
    assert torch.equal(module(x), x)  # taken off again


def test_latent_noise_reaches_every_mlp_or_says_so():
    model = native("RMS", hosts()[0], torch.float32)
    assert mlps(model) == [block.mlp for block in model.blocks]
    tokens = repeats()(0)
    with torch.no_grad(), latent_noise(mlps(model), 0.5):
        torch.manual_seed(0)
        noisy = model(tokens)
    assert not torch.allclose(noisy, model(tokens), atol=1e-2)
    with pytest.raises(ValueError, match="were never run"), latent_noise([nn.Identity()], 0.1):
        model(tokens)
    with pytest.raises(ValueError, match="no module called `mlp`"):
        mlps(Xor())
    with pytest.raises(ValueError, match="noise_at"):
        xor(TrainingConfig(n_steps=1, latent_noise=0.1))


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
def test_rates(decay):
    rates = [learning_rate(s, 20, 2.0, final=0.5, warmup_steps=4, decay=decay) for s in range(21)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0] and rates[4] == 2.0
    if decay == "constant":
        assert set(rates[4:]) == {2.0}
        return
    assert math.isclose(rates[12], 1.25) and math.isclose(rates[20], 0.5)
    assert all(a > b for a, b in zip(rates[4:], rates[5:], strict=False))
    steps = torch.tensor(rates[4:]).diff()
    assert torch.allclose(steps, steps[0]) == (decay == "linear")


def test_an_epoch_reads_each_example_once_in_an_order_of_its_own():
    batches = ShuffledBatches(torch.arange(10), torch.arange(10), batch_size=3, seed=2)
    epochs = [torch.cat([batches(3 * e + s)[0] for s in range(3)]) for e in range(2)]
    assert all(len(set(epoch.tolist())) == 9 for epoch in epochs)
    assert not torch.equal(*epochs)
    assert torch.equal(batches(4)[0], batches(4)[1])


def test_biases_and_gains_are_not_decayed():
    """With a gradient of zero, AdamW moves what is decayed and nothing else."""
    model = native("LN", hosts()[0], torch.float32)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    config = TrainingConfig(n_steps=1, weight_decay=0.5, learning_rate=0.1, warmup_steps=0)

    def nothing(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return 0.0 * sum(value.sum() for value in model.parameters())  # pyright: ignore

    train(model, repeats(), config, loss=nothing, progress=False)
    moved = {n for n, value in model.named_parameters() if not torch.equal(value, before[n])}
    names = {name.split(".")[-1] for name in moved}
    assert names and not any(name.startswith("b_") or name == "b" for name in names)
    assert not any("ln" in name for name in moved)


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_its_checkpoint(tmp_path):
    config = TrainingConfig(n_steps=6)

    def explode(model: nn.Module, batch: Any) -> torch.Tensor:
        value = class_loss(model, batch)
        return value * float("nan") if explode.calls == 4 else value

    explode.calls = 0

    def counting(model: nn.Module, batch: Any) -> torch.Tensor:
        explode.calls += 1
        return explode(model, batch)

    torch.manual_seed(0)
    with pytest.raises(ValueError, match="loss is nan at step 3: lower"):
        train(
            Xor(),
            xor_data(),
            config,
            loss=counting,
            out_folder=tmp_path,
            checkpoint_every=2,
            progress=False,
        )
    assert torch.load(tmp_path / "training.pt", weights_only=True)["step"] == 2


def test_folders_that_cannot_take_the_run(tmp_path, monkeypatch):
    from tl_bilinear.optimisation import files

    config = TrainingConfig(n_steps=4)
    xor(config, out_folder=tmp_path / "run")
    whole = (tmp_path / "run" / "training.pt").read_bytes()
    other = TrainingConfig(n_steps=4, weight_decay=0.2)
    with pytest.raises(ValueError, match="holds a run with weight_decay=0.1, but this one has"):
        xor(other, out_folder=tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="nothing can be written to"):
        xor(config, out_folder=tmp_path / "file")
    (tmp_path / "run" / "training.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="delete it to start again"):
        xor(config, out_folder=tmp_path / "run")

    xor(config, out_folder=tmp_path / "full", stop_at=2)
    kept = (tmp_path / "full" / "training.pt").read_bytes()

    def full(descriptor: int) -> None:
        if (tmp_path / "full" / "training.pt.tmp").exists():
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="the one before it is intact"):
        xor(config, out_folder=tmp_path / "full")
    assert (tmp_path / "full" / "training.pt").read_bytes() == kept
    assert not list((tmp_path / "full").glob("*.tmp"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_steps": 0}, "`n_steps` is 0"),
        ({"latent_noise": -1.0}, "`latent_noise` is -1"),
        ({"beta2": 1.0}, "`beta2` is 1.0"),
        ({"clip_norm": 0.0}, "`clip_norm` is 0.0"),
        ({"decay": "step"}, "`decay` must be"),
    ],
)
def test_settings_out_of_range(change, message, unchecked):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**change)


def test_batches_out_of_range(unchecked):
    with pytest.raises(ValueError, match="fewer than a window of 20"):
        TokenWindows(torch.arange(10), batch_size=2, window=20)
    with pytest.raises(ValueError, match="at least two tokens"):
        TokenWindows(torch.arange(10), batch_size=2, window=1)
    with pytest.raises(ValueError, match="give pairs"):
        ShuffledBatches(torch.arange(3), torch.arange(4), 2)
    with pytest.raises(ValueError, match="between 1 and the 3 examples"):
        ShuffledBatches(torch.arange(3), torch.arange(3), 4)
