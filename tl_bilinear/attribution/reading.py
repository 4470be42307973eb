"""What a mode reads: tokens of the vocabulary, a prompt, and stories that activate it."""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.decompositions import Mode
from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.corpus import read_rows, token_batches


@dataclass(frozen=True)
class TokenReading:
    """Tokens with the activation v.x that their own embedding, normalised alone, gives."""

    positive: tuple[tuple[str, float], ...]
    negative: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Example:
    """A window of text around a token at which a mode is strongly active."""

    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    """v.x at each token, signed."""
    peak: int
    """Index of the token of largest |activation| in the window."""
    text: int
    """Which of the texts it comes from."""


def reading_tokens(
    model: Any, mode: Mode, k: int = 10, *, among: Iterable[int] | None = None
) -> TokenReading:
    """The k tokens that read most into a mode with each sign. O(d_vocab * d_model).

    The direct path only: a token's embedding through the norm that the MLP reads through, as
    if it stood alone in the stream. What attention and earlier MLPs write is left out.

    Args:
        among: the token ids to choose from, such as those that occur in a text: embeddings of
            tokens that were never trained are noise. The whole vocabulary where it is None.

    Raises:
        ValueError: `among` holds no token id of this model.
    """
    host = get_host(model)
    stream = host.mlp_norm(mode.layer).normalize(host.W_E.detach().double())
    activation = stream @ mode.eigenvector.to(stream)
    allowed = set(range(len(activation))) if among is None else set(among)
    order = [i for i in activation.argsort(descending=True, stable=True).tolist() if i in allowed]
    if not order:
        raise ValueError(f"`among` holds no token id of this model (0-{len(activation) - 1})")
    names = host.str_tokens(torch.tensor(order))
    values = activation[order].tolist()
    rows = tuple(zip(names, values, strict=True))
    return TokenReading(rows[:k], rows[::-1][:k])


def mode_activations(
    model: Any, text: str, modes: Sequence[Mode]
) -> tuple[list[str], Float[Tensor, "pos mode"]]:
    """Each token of a text, and every mode's activation v.x there."""
    host = get_host(model)
    tokens = host.to_tokens(text)
    return host.str_tokens(tokens), _activations(host, [tokens], modes)[0]


def top_examples(
    model: Any, modes: Sequence[Mode], texts: Iterable[str], k: int = 4, window: int = 10
) -> tuple[tuple[Example, ...], ...]:
    """Per mode, the windows around its k largest |activations|, one per text at the most.

    Texts are streamed in batches and cut at the context; the first token (BOS) of each is
    left out, because its stream is unlike any other's. Ties keep the earlier text.
    """
    host = get_host(model)
    heaps: list[list[tuple[float, int, Example]]] = [[] for _ in modes]
    for start, batch in token_batches(host, texts):
        for row, values in enumerate(_activations(host, batch, modes)):
            names = host.str_tokens(batch[row])
            for heap, column in zip(heaps, values.unbind(1), strict=True):
                example = _example(names, column, window, start + row)
                if example is None:
                    continue
                size = abs(example.activations[example.peak])
                heapq.heappush(heap, (size, -example.text, example))
                if len(heap) > k:
                    heapq.heappop(heap)
    return tuple(tuple(item[2] for item in sorted(heap, reverse=True)) for heap in heaps)


def _example(
    names: list[str], column: Float[Tensor, " pos"], window: int, text: int
) -> Example | None:
    if len(column) < 2:
        return None
    peak = int(column[1:].abs().argmax()) + 1
    first, last = max(1, peak - window), min(len(names), peak + window + 1)
    return Example(
        tokens=tuple(names[first:last]),
        activations=tuple(column[first:last].tolist()),
        peak=peak - first,
        text=text,
    )


def _activations(
    host: AbstractHost, rows: Sequence[Tensor], modes: Sequence[Mode]
) -> list[Float[Tensor, "pos mode"]]:
    streams = read_rows(host, rows, sorted({mode.layer for mode in modes}))
    columns = [mode.activations(streams[mode.layer]) for mode in modes]
    values = torch.stack(columns, -1)
    return [value[: len(row)] for row, value in zip(rows, values, strict=True)]
