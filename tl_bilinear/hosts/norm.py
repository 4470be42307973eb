"""What a normalisation does to a residual stream, in the terms that folding needs."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Norm:
    """`gain * (x - mean) / scale + bias`; scale and mean are the host's to compute.

    The normalised stream, `(x - mean) / scale`, is what TransformerLens calls
    `hook_normalized`: it comes before gain and bias.
    """

    gain: Float[Tensor, " d_model"] | None
    """None where there is none (or where it is folded away): a gain of one."""
    bias: Float[Tensor, " d_model"] | None
    centred: bool
    """LayerNorm subtracts the mean; RMSNorm and no norm do not."""
    eps: float = 0.0
    """Added to the mean square under the root."""
    exists: bool = True
    """False where the model has no norm here: the scale is one."""

    def normalize(self, stream: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The normalised stream, before gain and bias."""
        return self.centre(stream) / self.denominator(stream)[..., None]

    def centre(self, stream: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The stream without its mean, where the norm subtracts it."""
        return stream - stream.mean(-1, keepdim=True) if self.centred else stream

    def denominator(self, stream: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """What the (centred) stream is divided by; ones without a norm."""
        if not self.exists:
            return torch.ones_like(stream[..., 0])
        return (self.centre(stream).square().mean(-1) + self.eps).sqrt()

    def fold_readout(
        self, readout: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """The u with `u . x / scale = readout . (gain * (x - mean) / scale)`."""
        if self.gain is not None:
            readout = readout * self.gain.to(readout)
        if self.centred:
            readout = readout - readout.mean(-1, keepdim=True)
        return readout

    def frozen(
        self, stream: Float[Tensor, "*batch d_model"], scale: Float[Tensor, "*scale 1"]
    ) -> Float[Tensor, "*out d_model"]:
        """`gain * (x - mean) / scale` with a scale from the forward pass; the bias is left out."""
        if self.centred:
            stream = stream - stream.mean(-1, keepdim=True)
        stream = stream / scale
        return stream if self.gain is None else self.gain.to(stream) * stream


NO_NORM = Norm(gain=None, bias=None, centred=False, exists=False)
