"""How well a dictionary stands for what its hook sees: reconstruction, and the model's loss."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.dictionary import Dictionary
from tl_bilinear.hosts import get_host
from tl_bilinear.hosts.corpus import token_batches


@dataclass(frozen=True)
class Fidelity:
    """Of a dictionary on text; the first token (BOS) of each text is left as it is."""

    tokens: int
    fvu: float
    """Fraction of variance unexplained: |x - x^|^2 over |x - mean|^2."""
    l0: float
    """Mean number of active features per token."""
    dead: float
    """Share of the features that were active on no token."""
    loss: float
    """Nats per token of the model as it is."""
    spliced: float
    """With the hook's values replaced by their reconstruction."""
    zeroed: float
    """With the hook's values replaced by zero."""

    @property
    def recovered(self) -> float:
        """Share of the loss between zeroed and whole that the reconstruction keeps."""
        return (self.zeroed - self.spliced) / (self.zeroed - self.loss)


@torch.no_grad()
def measure_fidelity(model: Any, dictionary: Dictionary, texts: Iterable[str]) -> Fidelity:
    """Reconstruction and spliced losses over texts: three forward passes of each.

    Raises:
        ValueError: a hook that the model lacks, another width, texts without a token.
    """
    host = get_host(model)
    if dictionary.d_in != host.d_model:
        raise ValueError(
            f"the dictionary is of {dictionary.d_in} dimensions, the model of {host.d_model}"
        )
    dictionary = dictionary.to(host.device)
    losses = {"loss": 0.0, "spliced": 0.0, "zeroed": 0.0}
    error = active = 0.0
    count, seen = 0, torch.zeros(dictionary.n_features, dtype=torch.bool, device=host.device)
    total = torch.zeros(2, host.d_model, dtype=torch.float64, device=host.device)
    for _, rows in token_batches(host, texts):
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(host.device)
        lengths = torch.tensor([len(row) for row in rows], device=host.device)
        inside = torch.arange(tokens.shape[1], device=host.device) < lengths[:, None]
        logits, cache = host.read(tokens, [dictionary.hook_name])
        kept = inside.clone()
        kept[:, 0] = False
        x = cache[dictionary.hook_name][kept].double()
        z = dictionary.encode(x.to(dictionary.encoder.dtype))
        error += float((x - dictionary.decode(z)).square().sum())
        active += float((z > 0).sum())
        seen |= (z > 0).any(0)
        count += len(x)
        total += torch.stack([x.sum(0), x.square().sum(0)])
        losses["loss"] += _nats(logits, tokens, inside)
        for name, dictionary_or_none in (("spliced", dictionary), ("zeroed", None)):
            hook = _replacement(dictionary_or_none, kept)
            with host.hooks([(dictionary.hook_name, hook)]), warnings.catch_warnings():
                # TransformerLens 4 says of a norm's hooks that rounding may differ.
                warnings.filterwarnings("ignore", "A forward hook edited hook_scale")
                edited, _ = host.read(tokens, [])
            losses[name] += _nats(edited, tokens, inside)
    if not count:
        raise ValueError("the texts hold no token behind their first one")
    variance = float((total[1] - total[0] ** 2 / count).sum())
    # Every kept token is predicted by the one before it: as many predictions as kept tokens.
    return Fidelity(
        tokens=count,
        fvu=error / variance,
        l0=active / count,
        dead=1 - float(seen.double().mean()),
        **{name: nats / count for name, nats in losses.items()},
    )


def _nats(logits: Tensor, tokens: Tensor, inside: Tensor) -> float:
    likelihood = logits[:, :-1].double().log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    return -float(likelihood[inside[:, 1:]].sum())


def _replacement(dictionary: Dictionary | None, kept: Tensor) -> Any:
    def hook(value: Float[Tensor, "batch pos d_model"], hook: Any = None) -> Tensor:
        if dictionary is None:
            return torch.where(kept[..., None], 0.0, value)
        found = dictionary.decode(dictionary.encode(value.to(dictionary.encoder.dtype)))
        return torch.where(kept[..., None], found.to(value), value)

    return hook
