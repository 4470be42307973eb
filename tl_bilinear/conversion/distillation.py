"""From a gated to a bilinear transformer: anneal the gate while distilling from the original.

The student starts as a copy of the model, its gate is annealed from the original activation to
g/2 (see `annealing`), and all its weights are trained on

    kl_weight * KL(teacher || student) + next_token_weight * (-log p of the next token)

per token (either weight may be 0), with the unconverted model as frozen teacher. At the end the
gate's factor is folded. Method: arXiv:2410.08417, appendix J, which fine-tunes on the next-token
loss alone; distilling from the unconverted model is ours.

    bilinear = bilinearize(model, token_stream, DistillationConfig(n_steps=1000), out_folder="run")

A run writes `training.pt` (weights, optimizer, step) and `metrics.jsonl` to its folder, and goes on
from there when called again. The windows of step t are a function of (seed, t) alone, there is no
dropout, and so a run that was stopped ends bit for bit where an uninterrupted one does, on the same
machine, torch version and number of threads.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from tl_bilinear.conversion.annealing import anneal_, fold_gate_, set_beta_
from tl_bilinear.conversion.gates import gate_activation
from tl_bilinear.conversion.schedules import SCHEDULES, beta_at
from tl_bilinear.optimisation import TokenWindows, TrainingRun, learning_rate
from tl_bilinear.optimisation.files import fingerprint_parameters, fingerprint_tokens


@dataclass(frozen=True)
class DistillationConfig:
    """How to distil; checked on creation (ValueError).

    Attributes:
        n_steps: optimizer steps in all.
        batch_size: windows of text per step.
        window: tokens per window.
        learning_rate: the peak, after `warmup_steps` of linear rise.
        final_learning_rate: where the cosine decay ends.
        warmup_steps: steps of linear rise.
        anneal_fraction: share of the steps over which beta goes from 1 to 0.
        schedule: how beta falls, a name of `SCHEDULES`.
        learned_scale: train a factor for every neuron's gate, folded at the end.
        kl_weight: weight of the divergence; 0 trains on the next token alone, as 2410.08417 does,
            and does not run the teacher.
        next_token_weight: weight of the next-token loss.
        weight_decay: AdamW's, on all weights.
        beta2: AdamW's second decay rate.
        clip_norm: the gradient's norm is cut to this.
        seed: chooses the windows.
    """

    n_steps: int = 3000
    batch_size: int = 16
    window: int = 256
    learning_rate: float = 2e-3
    final_learning_rate: float = 1e-5
    warmup_steps: int = 50
    anneal_fraction: float = 0.3
    schedule: str = "linear"
    learned_scale: bool = False
    kl_weight: float = 1.0
    next_token_weight: float = 0.0
    weight_decay: float = 0.0
    beta2: float = 0.99
    clip_norm: float = 1.0
    seed: int = 0

    def __post_init__(self):
        """Raise ValueError for the first value out of range."""
        for name in ("n_steps", "batch_size", "learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}: give a number above 0.")
        for name in (
            "warmup_steps",
            "kl_weight",
            "next_token_weight",
            "weight_decay",
            "final_learning_rate",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}: give 0 or more.")
        if self.window < 2:
            raise ValueError(f"`window` is {self.window}: give at least 2 tokens.")
        if not 0 < self.anneal_fraction <= 1:
            raise ValueError(
                f"`anneal_fraction` is {self.anneal_fraction}: give a share above 0 and up to 1."
            )
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"`schedule` is {self.schedule!r}: expected one of {', '.join(SCHEDULES)}."
            )
        if self.kl_weight == 0 and self.next_token_weight == 0:
            raise ValueError("`kl_weight` and `next_token_weight` are both 0: nothing is trained.")

    def beta(self, step: int) -> float:
        """Return the gate's beta at a step."""
        return beta_at(step, self.n_steps, self.anneal_fraction, self.schedule)

    def rate(self, step: int) -> float:
        """Return the learning rate at a step: linear warm-up, then a cosine down to the final."""
        return learning_rate(
            step,
            self.n_steps,
            self.learning_rate,
            final=self.final_learning_rate,
            warmup_steps=self.warmup_steps,
        )


class Losses(NamedTuple):
    """Mean per token, in nats: divergence from the teacher, and next-token loss."""

    kl: Float[Tensor, ""] | None
    next_token: Float[Tensor, ""]


def windows(
    data: Int[Tensor, " n_tokens"], config: DistillationConfig, step: int
) -> Int[Tensor, "batch window"]:
    """Return the windows of text of one step, a function of (data, config.seed, step) alone."""
    return TokenWindows(data, config.batch_size, config.window, config.seed)(step)


def distillation_losses(
    student_logits: Float[Tensor, "batch pos d_vocab"],
    teacher_logits: Float[Tensor, "batch pos d_vocab"] | None,
    tokens: Int[Tensor, "batch pos"],
) -> Losses:
    """Return KL(teacher || student) over all positions (None without), and the next-token loss."""
    student = functional.log_softmax(student_logits.float(), dim=-1)
    next_token = -student[:, :-1].gather(-1, tokens[:, 1:, None]).mean()
    if teacher_logits is None:
        return Losses(None, next_token)
    teacher = functional.log_softmax(teacher_logits.float(), dim=-1)
    divergence = (teacher.exp() * (teacher - student)).sum(-1).mean()
    return Losses(divergence, next_token)


def bilinearize(
    model: PreTrainedModel,
    data: Int[Tensor, " n_tokens"],
    config: DistillationConfig = DistillationConfig(),  # noqa: B008 (frozen)
    *,
    start: PreTrainedModel | None = None,
    out_folder: str | Path | None = None,
    checkpoint_every: int = 50,
    evaluate: Callable[[PreTrainedModel], dict[str, float]] | None = None,
    evaluate_every: int = 500,
    stop_at: int | None = None,
    progress: bool = True,
) -> PreTrainedModel:
    """Return a bilinear copy of a gated transformer, distilled from it; `model` stays as it is.

    Args:
        model: a Llama-like model of transformers (gate_proj, up_proj, down_proj; SiLU or GELU).
        data: one stream of tokens, each text begun by the beginning-of-text token.
        config: the recipe.
        start: a bilinear student to train further, without annealing, as a second run of
            `bilinearize` does with another learning rate; a copy of `model` where it is None.
        out_folder: where the run is kept and resumed from; None keeps nothing.
        checkpoint_every: steps between two writings of `training.pt`.
        evaluate: called with the student as it is, unfolded; its numbers join the metrics.
        evaluate_every: steps between two evaluations; the last step has one too.
        stop_at: stop before this step and return the student as it is, unfolded.
        progress: show a progress bar with the losses and beta.

    Returns:
        A model of the same class with hidden_act "linear", in eval mode.

    Raises:
        ValueError: for a model that cannot be annealed or is bilinear already; for data shorter
            than a window or with tokens the model does not have; for a window beyond the context;
            where `out_folder` holds a run of another model, data or config.
    """
    _check_data(model, data, config)
    student = _student(model, start, config.learned_scale)
    student.eval().requires_grad_(True)  # eval: no dropout
    identity = _identity(model, data, config)
    if start is not None:
        identity["start"] = fingerprint_parameters(start)
    run = TrainingRun(student, _optimizer(student, config), out_folder, identity)
    end = config.n_steps if stop_at is None else min(stop_at, config.n_steps)
    bar = tqdm(range(run.step, end), initial=run.step, total=config.n_steps, disable=not progress)
    bar.set_description("bilinearize")
    was_training = model.training
    model.eval()
    try:
        for step in bar:
            tokens = windows(data, config, step).to(model.device)
            beta = config.beta(step) if start is None else 0.0
            if start is None:
                set_beta_(student, beta)
            metrics = _train_step(student, model, tokens, run.optimizer, config, step)
            metrics["beta"] = beta
            shown = [key for key in ("kl", "next_token", "beta") if key in metrics]
            bar.set_postfix({key: f"{metrics[key]:.4f}" for key in shown})
            last = step + 1 == config.n_steps
            if evaluate is not None and (last or (step + 1) % evaluate_every == 0):
                metrics |= evaluate(student)
            run.record(metrics)
            if step + 1 == end or (step + 1) % checkpoint_every == 0:
                run.save()
    finally:
        model.train(was_training)
    if start is None and run.step == config.n_steps:
        set_beta_(student, 0.0)
        fold_gate_(student)
    return student


def _student(
    model: PreTrainedModel, start: PreTrainedModel | None, learned_scale: bool
) -> PreTrainedModel:
    """What is trained: a copy of the model with annealed gates, or of the bilinear start."""
    if start is None:
        student = copy.deepcopy(model)
        anneal_(student, learned_scale=learned_scale)
        return student
    if gate_activation(start) != "linear":
        raise ValueError(
            f"`start` has the gate activation {gate_activation(start)!r}: give a bilinear model "
            'with hidden_act "linear", as bilinearize returns it, or leave it out.'
        )
    return copy.deepcopy(start)


def _optimizer(student: PreTrainedModel, config: DistillationConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        student.parameters(),
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )


def _train_step(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokens: Int[Tensor, "batch window"],
    optimizer: torch.optim.Optimizer,
    config: DistillationConfig,
    step: int,
) -> dict[str, float]:
    rate = config.rate(step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    expected = None
    if config.kl_weight:
        with torch.no_grad():
            expected = teacher(tokens, use_cache=False).logits
    losses = distillation_losses(student(tokens, use_cache=False).logits, expected, tokens)
    weighted = ((config.kl_weight, losses.kl), (config.next_token_weight, losses.next_token))
    # A loss of weight 0 is measured, but no gradient of zeros is sent through it.
    total = torch.stack([w * loss for w, loss in weighted if w and loss is not None]).sum()
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    norm = nn.utils.clip_grad_norm_(student.parameters(), config.clip_norm)
    optimizer.step()
    divergence = {} if losses.kl is None else {"kl": losses.kl.item()}
    return {
        "step": step,
        **divergence,
        "next_token": losses.next_token.item(),
        "learning_rate": rate,
        "gradient_norm": norm.item(),
    }


def _identity(
    model: PreTrainedModel, data: Int[Tensor, " n_tokens"], config: DistillationConfig
) -> dict:
    return {
        "model": fingerprint_parameters(model),
        "data": fingerprint_tokens(data),
        **asdict(config),
    }


def _check_data(
    model: PreTrainedModel, data: Int[Tensor, " n_tokens"], config: DistillationConfig
) -> None:
    if len(data) < config.window:
        raise ValueError(
            f"the data has {len(data)} tokens, fewer than a window of {config.window}: "
            "give more text or a smaller window."
        )
    context = model.config.max_position_embeddings
    if config.window > context:
        raise ValueError(
            f"`window` is {config.window}, but the model's context is {context}: "
            f"give at most {context}."
        )
    low, high = int(data.min()), int(data.max())
    if low < 0 or high >= model.config.vocab_size:
        raise ValueError(
            f"the data holds token ids from {low} to {high}, but the model has the ids "
            f"0 to {model.config.vocab_size - 1}: tokenize it with the model's own tokenizer."
        )
