"""Bounded hinge: push the forget answers' margins down to a level, and no further."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.unlearning.answer_rows import site_logits, site_margins
from tl_bilinear.unlearning.methods.batches import Batch, ProblemBatches
from tl_bilinear.unlearning.methods.descent import Descent, ForgetLoss, Where
from tl_bilinear.unlearning.methods.method import AbstractMethod


@dataclass(frozen=True)
class Hinge(Descent):
    """Mean over forget tokens of max(0, margin + depth), margin = logit - largest other."""

    name = "hinge"
    kind = "removal"
    source = "facts/unlearning.md 5, part B: bounded hinge gradient on MLPs"

    depth: float = 5.0
    where: Where = "mlp"

    @classmethod
    def candidates(cls, host: AbstractHost) -> list[AbstractMethod]:
        rates = (1e-3, 3e-3)
        return [cls(learning_rate=rate, depth=depth) for rate in rates for depth in (2.0, 5.0)]

    def forget_loss(
        self, host: AbstractHost, original: AbstractHost, batches: ProblemBatches
    ) -> ForgetLoss:
        def loss(batch: Batch) -> Float[Tensor, ""]:
            margins = site_margins(site_logits(host, batch.forget), batch.forget.label)
            return (margins + self.depth).clamp_min(0).mean()

        return loss


METHOD = Hinge
