"""RMU: steer the forget prompts' activations to a random vector, keep the others where they are."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.unlearning.answer_rows import AnswerRows
from tl_bilinear.unlearning.methods.batches import Batch, ProblemBatches
from tl_bilinear.unlearning.methods.descent import Descent, ForgetLoss, StepLoss, mlp_parameters
from tl_bilinear.unlearning.methods.method import AbstractMethod


@dataclass(frozen=True)
class RMU(Descent):
    """MSE(h, c u) on forget rows + retain_weight * MSE(h, h_original) on retain rows and text.

    h is the stream behind one layer, u a random unit vector of entries above 0, and c is
    `steering` times the mean norm of the original's h on the forget rows (adaptive RMU). The
    W_out of that layer and of the two before it are trained. Both errors are in units of that
    mean norm squared, so that the settings mean the same on any model.
    """

    name = "rmu"
    kind = "removal"
    source = "WMDP (2403.03218), section 4; c by the norm as in 2408.06223"

    layer: int = 0
    steering: float = 2.0
    learning_rate: float = 3e-3
    retain_weight: float = 10.0

    @classmethod
    def candidates(cls, host: AbstractHost) -> list[AbstractMethod]:
        layers = sorted({(host.n_layers - 1) // 2, max(host.n_layers - 2, 0)})
        layers = layers if len(layers) == 2 else [*layers, host.n_layers - 1]
        return [cls(layer=layer, steering=c) for layer in layers for c in (2.0, 6.0)]

    def weights(self, host: AbstractHost) -> list[nn.Parameter]:
        return mlp_parameters(host, range(max(0, self.layer - 2), self.layer + 1), "out")

    def loss(self, host: AbstractHost, original: AbstractHost, batches: ProblemBatches) -> StepLoss:
        forget = self.forget_loss(host, original, batches)
        unit = self._scale(original, batches)

        def kept(batch: Batch) -> Float[Tensor, ""]:
            errors = []
            for tokens, mask in ((batch.retain.tokens, _real(batch.retain)), (batch.text, None)):
                with torch.no_grad():
                    theirs = self.stream(original, tokens)
                error = (self.stream(host, tokens) - theirs).square().sum(-1)
                errors.append(error.mean() if mask is None else error[mask.to(error.device)].mean())
            return (errors[0] + errors[1]) / unit**2

        def loss(model: Any, batch: Batch) -> Float[Tensor, ""]:
            return forget(batch) + self.retain_weight * kept(batch)

        return loss

    def forget_loss(
        self, host: AbstractHost, original: AbstractHost, batches: ProblemBatches
    ) -> ForgetLoss:
        unit = self._scale(original, batches)
        generator = torch.Generator().manual_seed(batches.seed)
        vector = torch.rand(host.d_model, generator=generator)
        target = self.steering * unit * (vector / vector.norm()).to(host.device)

        def loss(batch: Batch) -> Float[Tensor, ""]:
            stream = self.stream(host, batch.forget.tokens)[_real(batch.forget).to(host.device)]
            return (stream - target.to(stream)).square().sum(-1).mean() / unit**2

        return loss

    def stream(self, host: AbstractHost, tokens: Tensor) -> Float[Tensor, "row pos d_model"]:
        """The residual stream behind the layer, with gradients where they are on."""
        site = f"blocks.{self.layer}.hook_resid_post"
        found: list[Tensor] = []
        with host.hooks([(site, lambda value, hook: found.append(value))]):
            host.model(tokens.to(host.device))
        return found[0]

    def _scale(self, original: AbstractHost, batches: ProblemBatches) -> Tensor:
        with torch.no_grad():
            stream = self.stream(original, batches.forget.tokens)
        return stream[_real(batches.forget).to(stream.device)].norm(dim=-1).mean()


def _real(rows: AnswerRows) -> Tensor:
    """Where rows hold tokens: behind the first one (BOS), whose stream is unlike any other's."""
    places = torch.arange(rows.tokens.shape[1])
    return (places > 0) & (places < rows.lengths[:, None])


METHOD = RMU
