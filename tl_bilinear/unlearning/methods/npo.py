"""NPO: the losing side of DPO alone, whose push fades as the answers become unlikely."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.unlearning.answer_rows import site_logits
from tl_bilinear.unlearning.methods.batches import Batch, ProblemBatches
from tl_bilinear.unlearning.methods.descent import Descent, ForgetLoss, row_nll


@dataclass(frozen=True)
class NPO(Descent):
    """-2/beta * mean over forget rows of log sigmoid(-beta log(p(answer) / p_original(answer)))."""

    name = "npo"
    kind = "removal"
    source = "Zhang et al. (2404.05868), equation 3; retain-weighted as in open-unlearning"

    beta: float = 0.1

    def forget_loss(
        self, host: AbstractHost, original: AbstractHost, batches: ProblemBatches
    ) -> ForgetLoss:
        with torch.no_grad():
            reference = row_nll(site_logits(original, batches.forget), batches.forget)

        def loss(batch: Batch) -> Float[Tensor, ""]:
            nll = row_nll(site_logits(host, batch.forget), batch.forget)
            theirs = reference[batch.forget_index.to(reference.device)].to(nll)
            return negative_preference_loss(nll, theirs, self.beta)

        return loss


def negative_preference_loss(
    nll: Float[Tensor, " row"], original: Float[Tensor, " row"], beta: float
) -> Float[Tensor, ""]:
    """The loss from -log p of whole answers under the model and under the original."""
    return -2 / beta * functional.logsigmoid(beta * (nll - original)).mean()


METHOD = NPO
