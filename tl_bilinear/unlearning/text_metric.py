"""What an edit costs on general text: second moments that make a metric, and the KL itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.unlearning.layer_basis import LayerBasis
from tl_bilinear.unlearning.site_gradients import Change, adding, text_gradients

BATCH = 8

Batch = tuple[Int[Tensor, "_row _pos"], Bool[Tensor, "_row _pos"]]


def token_rows(
    host: AbstractHost, texts: Sequence[str], *, longest: int = 128, tokens: int = 16_384
) -> list[Batch]:
    """Texts as padded batches with masks, each cut at `longest`, until `tokens` are reached.

    Raises:
        ValueError: texts that are no strings, or hold fewer than two tokens together.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError("`texts` must be several strings: general text that is to stay as it is")
    rows: list[Tensor] = []
    total = 0
    for text in texts:
        if total >= tokens:
            break
        row = host.to_tokens(text)[: min(longest, host.n_ctx)]
        if len(row) > 1:
            rows.append(row)
            total += len(row)
    if not rows:
        raise ValueError("`texts` hold no token: give general text that is to stay as it is")
    rows.sort(key=len)
    return [_pad(rows[at : at + BATCH]) for at in range(0, len(rows), BATCH)]


def _pad(rows: Sequence[Tensor]) -> Batch:
    tokens = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return tokens, torch.arange(tokens.shape[1]) < lengths[:, None]


@dataclass(frozen=True, eq=False)
class LayerMoments:
    """E[phi phi^T] and E[W g g^T W^T] over the tokens of general text, in float64."""

    features: Float[Tensor, "feature feature"]
    readings: Float[Tensor, "writer writer"]

    def read_by(self, basis: LayerBasis) -> "LayerMoments":
        """Moments of a layer's whole width, as a basis with linear readers sees the same layer."""
        assert not basis.squares and basis.writers is None, "these read or write something else"
        if basis.readers is None:
            return self
        readers = basis.readers.to(self.features)
        return LayerMoments(readers @ self.features @ readers.mT, self.readings)


def text_moments(
    host: AbstractHost, batches: Sequence[Batch], bases: Sequence[LayerBasis], seed: int = 0
) -> dict[int, LayerMoments]:
    """One forward and one backward pass of the texts."""
    zero = [(basis, torch.zeros(basis.shape)) for basis in bases]
    found: dict[int, list[Tensor]] = {}
    count = 0
    generator = torch.Generator().manual_seed(seed)
    for batch in text_gradients(host, batches, zero, generator):
        for basis in bases:
            value, gradient = batch[basis.layer]
            phi, psi = basis.features(value).double(), basis.readings(gradient).double()
            sums = found.setdefault(basis.layer, [phi.new_zeros(()), psi.new_zeros(())])
            sums[0], sums[1] = sums[0] + phi.mT @ phi, sums[1] + psi.mT @ psi
        count += len(value)
    return {
        layer: LayerMoments(features / count, readings / count)
        for layer, (features, readings) in found.items()
    }


@dataclass(eq=False)
class TextKL:
    """Mean KL(model || edited model) per token of some texts, in nats, for one edit after another.

    What the model itself says is kept where it is small enough, and computed again else.
    """

    host: AbstractHost
    batches: Sequence[Batch]
    kept: int = 2**25
    """Log-probabilities that may be kept."""
    _said: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @torch.no_grad()
    def __call__(self, changes: Sequence[Change]) -> float:
        total, count = 0.0, 0
        for index, (tokens, mask) in enumerate(self.batches):
            tokens, mask = tokens.to(self.host.device), mask.to(self.host.device)
            before = self._before(index, tokens)
            with adding(self.host, changes):
                after = self.host.model(tokens).log_softmax(-1)
            kl = (before.exp() * (before - after)).sum(-1)
            total += float(kl[mask].double().sum())
            count += int(mask.sum())
        return total / count

    def _before(self, index: int, tokens: Tensor) -> Tensor:
        if index in self._said:
            return self._said[index]
        said = self.host.model(tokens).log_softmax(-1)
        if sum(each.numel() for each in self._said.values()) + said.numel() <= self.kept:
            self._said[index] = said
        return said


def text_kl(host: AbstractHost, batches: Sequence[Batch], changes: Sequence[Change]) -> float:
    """Mean KL(model || edited model) per token of the texts, in nats."""
    return TextKL(host, batches)(changes)
