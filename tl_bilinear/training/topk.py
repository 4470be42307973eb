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

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_bilinear.dictionary import Dictionary
from tl_bilinear.training.state import TrainingState, claim_state, write_state

MEDIAN_TOKENS = 4096
MEDIAN_STEPS = 32
BETAS, EPSILON = (0.9, 0.999), 6.25e-10


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
    state = None if folder is None else claim_state(Path(folder), config, activations)
    if state is None:
        state = _begin(activations, config, scale)
    start = time.monotonic() - state.seconds
    per_epoch = len(activations) // config.batch_size
    steps = range(state.step, config.n_steps)
    bar = tqdm(steps, initial=state.step, total=config.n_steps, disable=not progress, delay=2)
    order, epoch = torch.empty(0), -1
    for step in bar:
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
            order = torch.randperm(len(activations), generator=generator)
        first = step % per_epoch * config.batch_size
        batch = activations[order[first : first + config.batch_size]] * scale
        fvu, l0 = _step_(state, batch, config)
        state.step = step + 1
        if state.step % config.save_every == 0 or state.step == config.n_steps:
            state.seconds = time.monotonic() - start
            dead = float((state.silent >= config.dead_after).double().mean())
            state.curve.append(
                {
                    "step": state.step,
                    "fvu": fvu,
                    "l0": l0,
                    "dead": dead,
                    "seconds": round(state.seconds, 1),
                }
            )
            bar.set_postfix(fvu=f"{fvu:.3f}", dead=f"{dead:.2f}")
            if folder is not None:
                write_state(state, Path(folder))
    weights = state.weights
    found = Dictionary(
        encoder=weights["encoder"].clone(),
        encoder_bias=weights["encoder_bias"] / scale,
        decoder=weights["decoder"].clone(),
        decoder_bias=weights["decoder_bias"] / scale,
        activation="topk",
        hook_name=hook_name,
        source=source,
        k=config.k,
    )
    return TrainedDictionary(found, tuple(state.curve))


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


def _begin(activations: Tensor, config: TopKConfig, scale: float) -> TrainingState:
    generator = torch.Generator().manual_seed(config.seed)
    d_in = activations.shape[1]
    decoder = torch.randn(config.n_features, d_in, generator=generator).to(activations)
    decoder = decoder / decoder.norm(dim=-1, keepdim=True)
    sample = torch.randperm(len(activations), generator=generator)[:MEDIAN_TOKENS]
    weights = {
        "encoder": decoder.T.contiguous().clone(),
        "encoder_bias": decoder.new_zeros(config.n_features),
        "decoder": decoder,
        "decoder_bias": geometric_median(activations[sample] * scale),
    }
    return TrainingState.begin(weights)


def geometric_median(points: Float[Tensor, "point d"]) -> Float[Tensor, " d"]:
    """The point of least summed distance to all others, by Weiszfeld's iteration."""
    centre = points.mean(0)
    for _ in range(MEDIAN_STEPS):
        weights = 1 / (points - centre).norm(dim=-1, keepdim=True).clamp_min(1e-6)
        centre = (weights * points).sum(0) / weights.sum()
    return centre


def _step_(state: TrainingState, batch: Tensor, config: TopKConfig) -> tuple[float, float]:
    """One step of Adam; the batch's FVU and mean number of active features."""
    weights = {name: w.detach().requires_grad_() for name, w in state.weights.items()}
    before = (batch - weights["decoder_bias"]) @ weights["encoder"] + weights["encoder_bias"]
    kept = before.topk(config.k, dim=-1)
    values = kept.values.relu()
    z = torch.zeros_like(before).scatter(-1, kept.indices, values)
    error = batch - (z @ weights["decoder"] + weights["decoder_bias"])
    variance = (batch - batch.mean(0)).square().sum()
    fvu = error.square().sum() / variance
    loss = fvu
    dead = state.silent >= config.dead_after
    if dead.any():
        loss = loss + config.aux_weight * _auxiliary(weights, before, error, dead, variance, config)
    gradients = torch.autograd.grad(loss, list(weights.values()))
    _adam_(state, dict(zip(weights, gradients, strict=True)), config)
    fired = torch.zeros_like(dead)
    fired[kept.indices[values > 0]] = True
    state.silent = torch.where(fired, 0, state.silent + len(batch))
    return float(fvu.detach()), float((values > 0).sum(-1).double().mean())


def _auxiliary(
    weights: dict[str, Tensor],
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
    return (error.detach() - z @ weights["decoder"][indices]).square().sum() / variance


def _adam_(state: TrainingState, gradients: dict[str, Tensor], config: TopKConfig) -> None:
    rows = state.weights["decoder"]
    along = (gradients["decoder"] * rows).sum(-1, keepdim=True)
    gradients["decoder"] = gradients["decoder"] - along * rows
    left = (config.n_steps - state.step) / max(1.0, config.decay * config.n_steps)
    rate, count = config.learning_rate * min(1.0, left), state.step + 1
    for name, gradient in gradients.items():
        first, second = state.first[name], state.second[name]
        first.lerp_(gradient, 1 - BETAS[0])
        second.lerp_(gradient.square(), 1 - BETAS[1])
        size = (second / (1 - BETAS[1] ** count)).sqrt() + EPSILON
        state.weights[name] = state.weights[name] - rate / (1 - BETAS[0] ** count) * first / size
    rows = state.weights["decoder"]
    state.weights["decoder"] = rows / rows.norm(dim=-1, keepdim=True)
