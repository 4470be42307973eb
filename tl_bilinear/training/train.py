"""Train a TransformerLens model, a transformers model or any module, resumably.

    batches = TokenWindows(stream, batch_size=16, window=256)
    train(model, batches, TrainingConfig(n_steps=1000), out_folder="run")

The batch and all randomness of step t are functions of (seed, t) alone, and so a run that was
killed ends bit for bit where an uninterrupted one does, on the same machine, torch version and
number of threads.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from tl_bilinear.optimisation import Decay, TrainingRun, learning_rate
from tl_bilinear.optimisation.files import fingerprint_parameters
from tl_bilinear.training.noise import latent_noise, mlps

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class TrainingConfig:
    """How to train with AdamW; checked on creation (ValueError).

    Attributes:
        n_steps: optimizer steps in all.
        learning_rate: the peak, after `warmup_steps` of linear rise.
        final_learning_rate: where the decay ends.
        warmup_steps: steps of linear rise.
        decay: "cosine", "linear" or "constant".
        weight_decay: AdamW's, on matrices; norm gains and biases are not decayed.
        beta1, beta2: AdamW's decay rates.
        clip_norm: the gradient's norm is cut to this; None leaves it.
        latent_noise: Gaussian noise on each MLP's input while training, in units of the input's
            standard deviation over the batch (2406.03947 trains with 0.33).
        seed: of the noise and of any dropout; batches have their own.
    """

    n_steps: int = 1000
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.0
    warmup_steps: int = 50
    decay: Decay = "cosine"
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float | None = 1.0
    latent_noise: float = 0.0
    seed: int = 0

    def __post_init__(self):
        for name in ("n_steps", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}: give a number above 0")
        for name in ("warmup_steps", "weight_decay", "final_learning_rate", "latent_noise"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}: give 0 or more")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}: give a number in [0, 1)")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"`clip_norm` is {self.clip_norm}: give a number above 0, or None")
        self.rate(0)

    def rate(self, step: int) -> float:
        """The learning rate at a step."""
        return learning_rate(
            step,
            self.n_steps,
            self.learning_rate,
            final=self.final_learning_rate,
            warmup_steps=self.warmup_steps,
            decay=self.decay,
        )


def next_token_loss(model: nn.Module, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, ""]:
    """Mean of -log p of each next token, in nats, for models that return logits or `.logits`."""
    output = model(tokens.to(next(model.parameters()).device))
    logits = output if isinstance(output, Tensor) else output.logits
    return functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten().to(logits.device)
    )


def train(
    model: Model,
    batches: Callable[[int], Any],
    config: TrainingConfig = TrainingConfig(),  # noqa: B008 (frozen)
    *,
    loss: Callable[[Any, Any], Float[Tensor, ""]] = next_token_loss,
    out_folder: str | Path | None = None,
    checkpoint_every: int = 100,
    evaluate: Callable[[Model], dict[str, float]] | None = None,
    evaluate_every: int = 500,
    noise_at: Sequence[nn.Module] | None = None,
    stop_at: int | None = None,
    progress: bool = True,
) -> Model:
    """Train `model` in place, and return it in the mode (train or eval) that it was in.

    Args:
        model: a HookedTransformer, a TransformerBridge, a transformers model or any module.
        batches: from the step's number to its batch: `TokenWindows` of a token stream,
            `ShuffledBatches` of examples, or a function of yours, which must be one of the step
            alone for a resumed run to be the same.
        loss: from (model, batch) to a scalar; the next token's by default.
        out_folder: where the run is kept (`training.pt`, `metrics.jsonl`) and resumed from; None
            keeps nothing.
        checkpoint_every: steps between two writings.
        evaluate: called with the model in eval mode; its numbers join the metrics.
        evaluate_every: steps between two evaluations; the last step has one too.
        noise_at: the modules whose first input gets the latent noise; by default every module
            that is called `mlp`, as in both hosts and in transformers.
        stop_at: stop before this step.
        progress: show a bar with the loss.

    Raises:
        ValueError: a folder that cannot be written or holds another run; latent noise where no
            module takes it; a loss that is not finite, with the step (the last checkpoint stays).
        OSError: a checkpoint that cannot be written; the one before is intact.
    """
    identity = {
        "model": fingerprint_parameters(model),
        "batches": _name(batches),
        "loss": _name(loss),
        **asdict(config),
    }
    run = TrainingRun(model, _optimizer(model, config), out_folder, identity)
    end = config.n_steps if stop_at is None else min(stop_at, config.n_steps)
    places = (mlps(model) if noise_at is None else noise_at) if config.latent_noise else ()
    bar = tqdm(range(run.step, end), initial=run.step, total=config.n_steps, disable=not progress)
    bar.set_description("train")
    was_training = model.training
    try:
        for step in bar:
            model.train()
            with _seeded(config.seed, step), latent_noise(places, config.latent_noise):
                metrics = _train_step(model, batches(step), loss, run.optimizer, config, step)
            bar.set_postfix(loss=f"{metrics['loss']:.4f}")
            if evaluate is not None and _due(step, config.n_steps, evaluate_every):
                model.eval()
                metrics |= evaluate(model)
            run.record(metrics)
            if step + 1 == end or (step + 1) % checkpoint_every == 0:
                run.save()
    finally:
        model.train(was_training)
    return model


def _train_step(
    model: nn.Module,
    batch: Any,
    loss: Callable[[Any, Any], Float[Tensor, ""]],
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    step: int,
) -> dict[str, float]:
    rate = config.rate(step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    value = loss(model, batch)
    if not math.isfinite(value.item()):
        raise ValueError(
            f"the loss is {value.item()} at step {step}: lower `learning_rate` or `clip_norm`, or "
            "look at the data; the last checkpoint is as it was"
        )
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    limit = math.inf if config.clip_norm is None else config.clip_norm
    norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
    optimizer.step()
    return {
        "step": step,
        "loss": value.item(),
        "learning_rate": rate,
        "gradient_norm": norm.item(),
    }


def _optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # TransformerLens' attention biases have an axis for the heads.
            bias = parameter.ndim < 2 or name.split(".")[-1].startswith("b_")
            (others if bias else matrices).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )


@contextmanager
def _seeded(seed: int, step: int) -> Iterator[None]:
    """The step's own random numbers; the caller's generator is put back."""
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed * 1_000_003 + step)
        yield


def _due(step: int, n_steps: int, every: int) -> bool:
    return step + 1 == n_steps or (step + 1) % every == 0


def _name(function: Any) -> str:
    """What a run's identity calls its batches and its loss."""
    if hasattr(function, "fingerprint"):
        return function.fingerprint()
    return getattr(function, "__qualname__", type(function).__qualname__)
