"""Gradient methods: a forget loss of their own beside one retain loss that they share.

    forget loss + retain_weight * (NLL of the retained answers + KL(original || model) on text)

per step of AdamW without weight decay. In open-unlearning the retain term is one of the two; both
together hold more, and a baseline that is badly retained would flatter us (facts: unlearning 5.10).
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.training.train import TrainingConfig, train
from tl_bilinear.unlearning.answer_rows import AnswerRows, site_logits
from tl_bilinear.unlearning.methods.batches import Batch, ProblemBatches
from tl_bilinear.unlearning.methods.method import AbstractMethod, Problem

Where = Literal["all", "mlp"]
ForgetLoss = Callable[[Batch], Tensor]
StepLoss = Callable[[Any, Batch], Tensor]
STEPS = 120


@dataclass(frozen=True)
class Descent(AbstractMethod):
    """Settings that gradient methods share."""

    learning_rate: float = 1e-3
    """AdamW's peak; half a cosine to nothing behind 5 steps of rise."""
    retain_weight: float = 1.0
    steps: int = STEPS
    where: Where = "all"
    """Which weights are trained."""

    @classmethod
    def candidates(cls, host: AbstractHost) -> list[AbstractMethod]:
        """Two rates by two weights of what is kept."""
        rates = (3e-4, 1e-3)
        return [
            cls(learning_rate=rate, retain_weight=kept) for rate in rates for kept in (1.0, 5.0)
        ]

    def edit_(self, model: Any, problem: Problem) -> None:
        host = get_host(model)
        batches = ProblemBatches.of(host, problem)
        loss = self.loss(host, get_host(problem.original), batches)
        config = TrainingConfig(
            n_steps=self.steps,
            learning_rate=self.learning_rate,
            warmup_steps=min(5, self.steps - 1),
            weight_decay=0.0,
            seed=problem.seed,
        )
        with torch.enable_grad(), trained(host, self.weights(host)):
            train(model, batches, config, loss=loss, progress=False)

    def loss(self, host: AbstractHost, original: AbstractHost, batches: ProblemBatches) -> StepLoss:
        """From (model, batch) to the loss of a step."""
        forget = self.forget_loss(host, original, batches)

        def loss(model: Any, batch: Batch) -> Float[Tensor, ""]:
            return forget(batch) + self.retain_weight * retain_loss(host, original, batch)

        return loss

    @abstractmethod
    def forget_loss(
        self, host: AbstractHost, original: AbstractHost, batches: ProblemBatches
    ) -> ForgetLoss:
        """The method's own term, as a function of the batch."""

    def weights(self, host: AbstractHost) -> list[nn.Parameter]:
        """The weights that are trained."""
        if self.where == "all":
            return list(host.model.parameters())
        return mlp_parameters(host, range(host.n_layers))


def retain_loss(host: AbstractHost, original: AbstractHost, batch: Batch) -> Float[Tensor, ""]:
    """NLL per token of the retained answers plus KL(original || model) per token of the text."""
    nll = functional.cross_entropy(
        site_logits(host, batch.retain).float(), batch.retain.label.to(host.device)
    )
    return nll + text_divergence(host, original, batch.text)


def text_divergence(host: AbstractHost, original: AbstractHost, text: Tensor) -> Float[Tensor, ""]:
    """KL(original || model) per token, differentiable in the model."""
    with torch.no_grad():
        theirs = original.model(text.to(original.device)).float().log_softmax(-1)
    ours = host.model(text.to(host.device)).float().log_softmax(-1)
    return (theirs.exp() * (theirs - ours)).sum(-1).mean()


def row_nll(logits: Float[Tensor, "site d_vocab"], rows: AnswerRows) -> Float[Tensor, " row"]:
    """-log p of every row's whole answer: the sum over its tokens."""
    losses = functional.cross_entropy(
        logits.float(), rows.label.to(logits.device), reduction="none"
    )
    sums = torch.zeros(rows.n_rows, device=logits.device)
    return sums.index_add(0, rows.site_row.to(logits.device), losses)


def mlp_parameters(host: AbstractHost, layers: Any, names: str = "all") -> list[nn.Parameter]:
    """The matrices of some layers' MLPs; `names` "out" for W_out alone."""
    places = set()
    for layer in layers:
        tensor = host.mlp_weights(layer).tensor
        weights = (tensor.out,) if names == "out" else (tensor.left, tensor.right, tensor.out)
        places |= {weight.untyped_storage().data_ptr() for weight in weights}
    found = [p for p in host.model.parameters() if p.untyped_storage().data_ptr() in places]
    if not found:
        raise ValueError("this model's MLP weights are no parameters that can be trained")
    return found


@contextmanager
def trained(host: AbstractHost, weights: list[nn.Parameter]) -> Iterator[None]:
    """Only these weights take gradients inside the block."""
    before = [(p, p.requires_grad) for p in host.model.parameters()]
    wanted = {id(weight) for weight in weights}
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for parameter, was in before:
            parameter.requires_grad_(was)
            parameter.grad = None
