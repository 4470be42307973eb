"""Running a model with an edit added by hooks, and what its logits say of each layer's output."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.hosts.logits_at import logits_at
from tl_bilinear.unlearning.answer_rows import AnswerRows, site_log_odds
from tl_bilinear.unlearning.layer_basis import LayerBasis, LayerGradients

Change = tuple[LayerBasis, Tensor]
# Activations of this many rows are kept for their gradients at a time: of 16, 24, 32, 48 and 64 the
# quickest on a CPU whose caches are small.
BATCH = 48


class Tap:
    """Per layer, what the edit reads, and a zero added to the layer's output for its gradient."""

    def __init__(self) -> None:
        self.values: dict[int, Tensor] = {}
        self.zeros: dict[int, Tensor] = {}


@contextmanager
def adding(host: AbstractHost, changes: Sequence[Change], tap: Tap | None = None) -> Iterator[None]:
    """Inside the block the MLPs' outputs have the changes added; one basis per layer."""
    hooks = []
    for basis, theta in changes:
        tapped = _TappedLayer(basis, theta, tap)
        hooks.append((read_site(host, basis), tapped.read))
        hooks.append((host.mlp_out_site(basis.layer), tapped.write))
    with host.hooks(hooks):
        yield


class _TappedLayer:
    def __init__(self, basis: LayerBasis, theta: Tensor, tap: Tap | None):
        self.basis, self.theta, self.tap = basis, theta, tap
        self.value: Tensor | None = None

    def read(self, value: Tensor, hook: object = None) -> None:
        self.value = value
        if self.tap is not None:
            self.tap.values[self.basis.layer] = value.detach()

    def write(self, value: Tensor, hook: object = None) -> Tensor:
        assert self.value is not None, "the MLP's output fired before what it is made of"
        value = value + self.basis.change(self.value, self.theta).to(value)
        if self.tap is not None:
            zero = torch.zeros_like(value).detach().requires_grad_()
            self.tap.zeros[self.basis.layer] = zero
            value = value + zero
        return value


def read_site(host: AbstractHost, basis: LayerBasis) -> str:
    """The hook whose value the basis reads."""
    if basis.squares:
        return host.mlp_input_site(basis.layer)
    return host.mlp_hidden_site(basis.layer)


def log_odds_gradients(
    host: AbstractHost, rows: AnswerRows, changes: Sequence[Change]
) -> tuple[Float[Tensor, "site d_vocab"], dict[int, LayerGradients]]:
    """Logits at every site, and per layer the gradient of the label's log-odds by y.

    Rows do not interact, so that one backward pass of the sum gives every row its own gradient;
    a row of n sites takes n of them.
    """
    logits: list[Tensor] = []
    values: dict[int, list[Tensor]] = {basis.layer: [] for basis, _ in changes}
    gradients: dict[int, list[Tensor]] = {basis.layer: [] for basis, _ in changes}
    longest = rows.tokens.shape[1]
    parts = rows.by_sites(BATCH)
    for part in parts:
        some = rows.select(part)
        found, read, by_layer = _batch_gradients(host, some, changes)
        logits.append(found)
        for layer in values:
            values[layer].append(_to_length(read[layer], longest))
            gradients[layer].append(_to_length(by_layer[layer], longest))
    # Back from the batches' order to the rows' own.
    row, site = torch.cat(parts).argsort(), rows.sites_of(parts).argsort()
    place = rows.site_row.to(host.device)
    return torch.cat(logits)[site], {
        layer: LayerGradients(
            torch.cat(values[layer])[row], torch.cat(gradients[layer])[site], place
        )
        for layer in values
    }


def _batch_gradients(
    host: AbstractHost, rows: AnswerRows, changes: Sequence[Change]
) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
    tap = Tap()
    place = rows.site_row.to(host.device)
    index = rows.site_index.to(host.device)
    with torch.enable_grad(), adding(host, changes, tap):
        logits = logits_at(host, rows.tokens, place, rows.site_pos)
        odds = site_log_odds(logits, rows.label)
    layers = list(tap.zeros)
    found = {
        layer: zero.new_zeros(rows.n_sites, *zero.shape[1:]) for layer, zero in tap.zeros.items()
    }
    last = int(index.max())
    for turn in range(last + 1):
        chosen = index == turn
        with torch.enable_grad():
            total = odds[chosen].sum()
        parts = torch.autograd.grad(
            total, [tap.zeros[layer] for layer in layers], retain_graph=turn < last
        )
        for layer, gradient in zip(layers, parts, strict=True):
            found[layer][chosen] = gradient[place[chosen]]
    return logits.detach(), tap.values, found


def _to_length(value: Tensor, length: int) -> Tensor:
    """Zeros at the end: features there meet no gradient."""
    return torch.nn.functional.pad(value, (0, 0, 0, length - value.shape[1]))


def text_gradients(
    host: AbstractHost,
    batches: Sequence[tuple[Tensor, Tensor]],
    changes: Sequence[Change],
    generator: torch.Generator,
) -> Iterator[dict[int, tuple[Float[Tensor, "token width"], Float[Tensor, "token d_out"]]]]:
    """Per batch and layer: what the edit reads at every token, and gradients of text.

    The gradient is that of the log-probability of tokens drawn from the model itself, summed over
    the text: its second moment is the Fisher information's.

    Args:
        batches: (token rows, mask of what is a token), padded on the right.
    """
    for tokens, mask in batches:
        tap = Tap()
        mask = mask.to(host.device)
        with torch.enable_grad(), adding(host, changes, tap):
            log_probabilities = host.model(tokens.to(host.device)).log_softmax(-1)
        drawn = torch.multinomial(
            log_probabilities.detach().flatten(0, 1).exp().float().cpu(), 1, generator=generator
        )
        drawn = drawn.view(*tokens.shape, 1).to(host.device)
        with torch.enable_grad():
            said = log_probabilities.gather(-1, drawn)[..., 0]
            total = (said * mask).sum()
        layers = list(tap.zeros)
        parts = torch.autograd.grad(total, [tap.zeros[layer] for layer in layers])
        yield {
            layer: (tap.values[layer][mask], part[mask])
            for layer, part in zip(layers, parts, strict=True)
        }
