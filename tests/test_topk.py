"""The dictionary trainer: finds what was planted, resumes bit for bit, wakes dead latents."""

from dataclasses import replace

import pytest
import torch
from models import hosts

import tl_bilinear as tlb
from tl_bilinear.dictionary import Dictionary
from tl_bilinear.training import TopKConfig, measure_fidelity, train_dictionary
from tl_bilinear.training.topk import geometric_median

N, D_IN, ACTIVE = 32, 16, 3
RECIPE = TopKConfig(
    n_features=N, k=ACTIVE, n_steps=500, batch_size=256, learning_rate=1e-2, dead_after=20_000
)


def planted(tokens: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of 3 of 32 random directions, and the directions."""
    generator = torch.Generator().manual_seed(100)
    directions = torch.randn(N, D_IN, generator=generator)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    chosen = torch.rand(tokens, N, generator=generator).argsort(-1)[:, :ACTIVE]
    sizes = torch.rand(tokens, ACTIVE, generator=generator) + 0.5
    return torch.zeros(tokens, N).scatter(-1, chosen, sizes) @ directions, directions


def mean_best_cosine(directions: torch.Tensor, found: Dictionary) -> float:
    return float((directions @ found.decoder.T).amax(-1).mean())


def test_a_planted_dictionary_is_found():
    x, directions = planted()
    trained = train_dictionary(3.0 * x + 5.0, RECIPE, hook_name="here", progress=False)
    found = trained.dictionary
    assert mean_best_cosine(directions, found) > 0.9
    start = train_dictionary(x, replace(RECIPE, n_steps=1), progress=False).dictionary
    assert mean_best_cosine(directions, start) < 0.75  # the check can fail
    torch.testing.assert_close(found.decoder.norm(dim=-1), torch.ones(N))
    assert found.hook_name == "here" and found.k == ACTIVE
    y = 3.0 * x[:2000] + 5.0
    z = found.encode(y)
    fvu = (y - found.decode(z)).square().sum() / (y - y.mean(0)).square().sum()
    assert float(fvu) == pytest.approx(trained.curve[-1]["fvu"], abs=0.03) and fvu < 0.15
    assert (z > 0).sum(-1).max() <= ACTIVE and trained.seconds > 0


class StoppedError(Exception):
    pass


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    from tl_bilinear.training import topk

    x, _ = planted(1000)
    config = replace(RECIPE, n_steps=40, batch_size=100, save_every=8, dead_after=300, seed=3)
    whole = train_dictionary(x, config, progress=False)
    step_ = topk._step_

    def stopping(*arguments):
        if arguments[-1] == 21:
            raise StoppedError
        return step_(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(topk, "_step_", stopping)
        with pytest.raises(StoppedError):
            train_dictionary(x, config, folder=tmp_path, progress=False)
    steps = []
    with monkeypatch.context() as patch:
        patch.setattr(topk, "_step_", lambda *given: (steps.append(given[-1]), step_(*given))[1])
        again = train_dictionary(x, config, folder=tmp_path, progress=False)
    assert steps == list(range(16, 40))
    for name in ("encoder", "encoder_bias", "decoder", "decoder_bias"):
        assert torch.equal(getattr(whole.dictionary, name), getattr(again.dictionary, name))
    drop = [{k: v for k, v in row.items() if k != "seconds"} for row in again.curve]
    assert drop == [{k: v for k, v in row.items() if k != "seconds"} for row in whole.curve]
    other = train_dictionary(x, replace(config, seed=4), progress=False)
    assert not torch.equal(other.dictionary.encoder, whole.dictionary.encoder)
    with pytest.raises(ValueError, match="holds a run with seed=3, but this one has seed=4"):
        train_dictionary(x, replace(config, seed=4), folder=tmp_path, progress=False)
    (tmp_path / "training.pt").write_bytes(b"broken")
    with pytest.raises(ValueError, match="cannot be read"):
        train_dictionary(x, config, folder=tmp_path, progress=False)


def test_the_auxiliary_loss_wakes_dead_latents(monkeypatch):
    """Half of the latents begin with an encoder too small ever to be among the k largest."""
    from tl_bilinear.training import topk

    class HalfDead(topk.TopK):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.encoder.data[:, N:] *= 1e-3

    monkeypatch.setattr(topk, "TopK", HalfDead)
    x, _ = planted(4000)
    config = replace(RECIPE, n_features=2 * N, n_steps=200, batch_size=128, learning_rate=3e-3)
    config = replace(config, dead_after=1000)
    woken = train_dictionary(x, config, progress=False).curve[-1]
    asleep = train_dictionary(x, replace(config, aux_weight=0.0), progress=False).curve[-1]
    assert asleep["dead"] == 0.5 and woken["dead"] < 0.2 and woken["fvu"] < asleep["fvu"]


def test_the_geometric_median_is_the_point_of_least_distance():
    points = torch.randn(50, 3, dtype=torch.float64) ** 3
    found = geometric_median(points)
    gradient = ((found - points) / (found - points).norm(dim=-1, keepdim=True)).sum(0)
    assert gradient.norm() < 0.05 < ((points.mean(0) - points).sign()).sum(0).norm()


def test_bad_training_input_is_refused(unchecked):
    x, _ = planted(500)
    faults = [
        (x[0], {}, "shape \\[token, d_in\\]"),
        (x * torch.nan, {}, "finite"),
        (torch.ones(500, D_IN), {}, "all the same vector"),
        (x, {"batch_size": 501}, "fewer than one batch of 501"),
        (x, {"k": N + 1}, "`k` must be between 1 and n_features = 32"),
        (x, {"n_steps": 0}, "`n_steps` must be above 0"),
    ]
    for activations, change, words in faults:
        with pytest.raises(ValueError, match=words):
            train_dictionary(activations, replace(RECIPE, **change), progress=False)


@pytest.mark.parametrize("host", hosts())
def test_a_perfect_dictionary_splices_in_without_loss(host):
    model = tlb.load("stories-5l", host=host)
    identity = torch.eye(64)
    perfect = Dictionary(
        encoder=torch.cat([identity, -identity], 1),
        encoder_bias=torch.zeros(128),
        decoder=torch.cat([identity, -identity]),
        decoder_bias=torch.ones(64),
        activation="relu",
        hook_name="blocks.2.hook_mlp_out",
    )
    texts = ["Once upon a time, there was a little girl named Lily.", "The dog ran"]
    found = measure_fidelity(model, perfect, texts)
    assert found.fvu < 1e-9 and found.spliced == pytest.approx(found.loss, rel=1e-5)
    assert found.zeroed > found.loss and found.recovered == pytest.approx(1, abs=1e-4)
    total = 0.0
    for text in texts:
        tokens = model.to_tokens(text)
        total += float(model(tokens, return_type="loss").detach()) * (tokens.shape[1] - 1)
    assert found.loss * found.tokens == pytest.approx(total, rel=1e-4)
    with pytest.raises(ValueError, match="is of 16 dimensions, the model of 64"):
        small = train_dictionary(planted(300)[0], replace(RECIPE, n_steps=1), progress=False)
        measure_fidelity(model, small.dictionary, texts)
    with pytest.raises(ValueError, match="no token"):
        measure_fidelity(model, perfect, [])
