"""A top-k sparse autoencoder, trained on activations held in memory.

    z = relu(topk((x - b_dec) W_enc + b_enc))        x^ = z W_dec + b_dec
    loss = |x - x^|^2 / |x - mean|^2 + aux_weight |e - e^|^2 / |x - mean|^2

Gao et al., 2406.04093: tied initialisation, unit-norm decoder rows whose gradient is kept
tangential, `b_dec` begun at the geometric median (section 2.1, appendix A), and for latents
that have not fired for `dead_after` tokens the auxiliary loss of section 2.2 and appendix A.2:
the `k_aux` largest of them reconstruct the error e that the live ones leave. Ours: activations
are scaled to unit variance per entry while training, the rate falls linearly over the last
fifth, and batches come from a seeded permutation per epoch, so that a run that was stopped goes
on bit for bit.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_bilinear.dictionary import Dictionary
from tl_bilinear.optimisation import TrainingRun
from tl_bilinear.optimisation.files import fingerprint_rows

MEDIAN_TOKENS = 4096
MEDIAN_STEPS = 32
EPSILON = 6.25e-10


@dataclass(frozen=True)
class TopKConfig:
    """Recipe of a dictionary."""

    n_features: int
    k: int
    n_steps: int = 4000
    batch_size: int = 2048
    """Tokens per step."""
    learning_rate: float = 1e-3
    decay: float = 0.2
    """Share of the steps, the last ones, over which the rate falls to zero."""
    k_aux: int | None = None
    """Dead latents that reconstruct the error; half of d_in where it is None."""
    aux_weight: float = 1 / 32
    dead_after: int = 200_000
    """Tokens without firing after which a latent counts as dead."""
    seed: int = 0
    save_every: int = 500
    """Steps between two states written to the run's folder."""


@dataclass(frozen=True)
class TrainedDictionary:
    """A dictionary and how its training went."""

    dictionary: Dictionary
    curve: tuple[dict[str, float], ...]
    """Per `save_every` steps: step, fvu and l0 of the batch, dead share, seconds so far."""

    @property
    def seconds(self) -> float:
        """Wall time of all its parts."""
        return self.curve[-1]["seconds"]


def train_dictionary(
    activations: Float[Tensor, "token d_in"],
    config: TopKConfig,
    *,
    hook_name: str = "",
    source: str = "",
    folder: str | Path | None = None,
    progress: bool = True,
) -> TrainedDictionary:
    """A top-k dictionary of the activations, in their dtype; O(steps * batch * n * d_in).

    Args:
        activations: one row per token; their order does not matter.
        hook_name: where they come from; it is written into the dictionary.
        folder: where the run's state is kept. A run that was stopped goes on from it, bit for
            bit on one machine; None keeps nothing.

    Raises:
        ValueError: activations that are not finite, constant, or fewer than one batch; a
            setting out of range; a folder that holds another run.
    """
    _check(activations, config)
    centre = activations.mean(0)
    scale = float((activations - centre).square().mean().sqrt()) ** -1
    model = TopK(activations, config, scale)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, eps=EPSILON)
    identity = {**asdict(config), "activations": fingerprint_rows(activations)}
    run = TrainingRun(model, optimizer, folder, identity)
    bar = tqdm(total=config.n_steps, initial=run.step, disable=not progress, delay=2)
    for batch in _batches(activations, config, run.step):
        metrics = _step_(model, optimizer, batch * scale, config, run.step)
        run.record({"step": run.step + 1, **metrics})
        bar.update()
        if run.step % config.save_every == 0 or run.step == config.n_steps:
            bar.set_postfix(fvu=f"{metrics['fvu']:.3f}", dead=f"{metrics['dead']:.2f}")
            run.save()
    found = model.dictionary(scale, hook_name, source)
    shown = [row for row in run.metrics if row["step"] % config.save_every == 0]
    if not shown or shown[-1]["step"] != config.n_steps:
        shown.append(run.metrics[-1])
    return TrainedDictionary(found, tuple(shown))


class TopK(nn.Module):
    """Encoder and decoder of activations at unit scale, and the tokens since a latent fired."""

    silent: Tensor

    def __init__(self, activations: Tensor, config: TopKConfig, scale: float):
        super().__init__()
        generator = torch.Generator().manual_seed(config.seed)
        d_in = activations.shape[1]
        decoder = torch.randn(config.n_features, d_in, generator=generator).to(activations)
        decoder = decoder / decoder.norm(dim=-1, keepdim=True)
        sample = torch.randperm(len(activations), generator=generator)[:MEDIAN_TOKENS]
        self.encoder = nn.Parameter(decoder.T.contiguous().clone())
        self.encoder_bias = nn.Parameter(decoder.new_zeros(config.n_features))
        self.decoder = nn.Parameter(decoder)
        self.decoder_bias = nn.Parameter(geometric_median(activations[sample] * scale))
        silent = torch.zeros(config.n_features, dtype=torch.long, device=decoder.device)
        self.register_buffer("silent", silent)
        self.k = config.k

    def dictionary(self, scale: float, hook_name: str, source: str) -> Dictionary:
        """As it is now, of activations that `scale` brought to unit variance."""
        return Dictionary(
            encoder=self.encoder.detach().clone(),
            encoder_bias=self.encoder_bias.detach() / scale,
            decoder=self.decoder.detach().clone(),
            decoder_bias=self.decoder_bias.detach() / scale,
            activation="topk",
            hook_name=hook_name,
            source=source,
            k=self.k,
        )


def _check(activations: Tensor, config: TopKConfig) -> None:
    if activations.ndim != 2 or not torch.isfinite(activations).all():
        raise ValueError(
            "`activations` must be finite numbers of shape [token, d_in], got "
            f"{tuple(activations.shape)}"
        )
    if len(activations) < config.batch_size:
        raise ValueError(
            f"`activations` hold {len(activations)} tokens, fewer than one batch of "
            f"{config.batch_size}: give more text or a smaller `batch_size`"
        )
    if (activations == activations[0]).all():
        raise ValueError("`activations` are all the same vector: there is nothing to learn")
    if not 1 <= config.k <= config.n_features:
        raise ValueError(
            f"`k` must be between 1 and n_features = {config.n_features}, got {config.k}"
        )
    for name in ("n_steps", "batch_size", "learning_rate", "dead_after", "save_every"):
        if getattr(config, name) <= 0:
            raise ValueError(f"`{name}` must be above 0, got {getattr(config, name)}")


def _batches(activations: Tensor, config: TopKConfig, first: int) -> Iterator[Tensor]:
    """The batches from step `first` on: a new order in every epoch."""
    per_epoch = len(activations) // config.batch_size
    order, epoch = torch.empty(0), -1
    for step in range(first, config.n_steps):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
            order = torch.randperm(len(activations), generator=generator)
        start = step % per_epoch * config.batch_size
        yield activations[order[start : start + config.batch_size]]


def geometric_median(points: Float[Tensor, "point d"]) -> Float[Tensor, " d"]:
    """The point of least summed distance to all others, by Weiszfeld's iteration."""
    centre = points.mean(0)
    for _ in range(MEDIAN_STEPS):
        weights = 1 / (points - centre).norm(dim=-1, keepdim=True).clamp_min(1e-6)
        centre = (weights * points).sum(0) / weights.sum()
    return centre


def _step_(
    model: TopK, optimizer: torch.optim.Optimizer, batch: Tensor, config: TopKConfig, step: int
) -> dict[str, float]:
    """One step: the batch's FVU and mean number of active features, the share of dead ones."""
    before = (batch - model.decoder_bias) @ model.encoder + model.encoder_bias
    kept = before.topk(config.k, dim=-1)
    values = kept.values.relu()
    z = torch.zeros_like(before).scatter(-1, kept.indices, values)
    error = batch - (z @ model.decoder + model.decoder_bias)
    variance = (batch - batch.mean(0)).square().sum()
    fvu = error.square().sum() / variance
    loss = fvu
    dead = model.silent >= config.dead_after
    if dead.any():
        loss = loss + config.aux_weight * _auxiliary(model, before, error, dead, variance, config)
    optimizer.zero_grad()
    loss.backward()
    left = (config.n_steps - step) / max(1.0, config.decay * config.n_steps)
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * min(1.0, left)
    with torch.no_grad():
        rows, gradient = model.decoder, model.decoder.grad
        assert gradient is not None
        gradient -= (gradient * rows).sum(-1, keepdim=True) * rows
        optimizer.step()
        rows /= rows.norm(dim=-1, keepdim=True)
        model.silent += len(batch)
        model.silent[kept.indices[values > 0]] = 0
    return {
        "fvu": float(fvu.detach()),
        "l0": float((values > 0).sum(-1).double().mean()),
        "dead": float((model.silent >= config.dead_after).double().mean()),
    }


def _auxiliary(
    model: TopK,
    before: Tensor,
    error: Tensor,
    dead: Tensor,
    variance: Tensor,
    config: TopKConfig,
) -> Tensor:
    """How much of the error the largest dead latents leave, as a share of the variance."""
    indices = dead.nonzero()[:, 0]
    wanted = config.k_aux or max(1, error.shape[-1] // 2)
    kept = before[:, indices].topk(min(wanted, len(indices)), dim=-1)
    z = torch.zeros_like(before[:, indices]).scatter(-1, kept.indices, kept.values.relu())
    return (error.detach() - z @ model.decoder[indices]).square().sum() / variance
