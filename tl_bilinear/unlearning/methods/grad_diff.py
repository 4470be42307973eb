"""GradDiff: gradient ascent on the forget answers, descent on what is retained."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.unlearning.answer_rows import site_logits
from tl_bilinear.unlearning.methods.batches import Batch, ProblemBatches
from tl_bilinear.unlearning.methods.descent import Descent, ForgetLoss


@dataclass(frozen=True)
class GradDiff(Descent):
    """-forget_weight * NLL of the forget answers, per token."""

    name = "grad_diff"
    kind = "removal"
    source = "Liu et al. 2022; TOFU (2401.06121), section 4: gradient difference"

    forget_weight: float = 1.0

    def forget_loss(
        self, host: AbstractHost, original: AbstractHost, batches: ProblemBatches
    ) -> ForgetLoss:
        def loss(batch: Batch) -> Float[Tensor, ""]:
            logits = site_logits(host, batch.forget).float()
            label = batch.forget.label.to(logits.device)
            return -self.forget_weight * functional.cross_entropy(logits, label)

        return loss


METHOD = GradDiff
