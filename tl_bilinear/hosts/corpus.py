"""Texts through a host in batches: what its hooks see over a corpus."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_bilinear.hosts import AbstractHost, get_host

# Attention at several hundred positions is bound by memory: small batches stay in cache.
BATCH = 4


def as_texts(texts: Any) -> list[str | Int[Tensor, " pos"]]:
    """Texts as a list; a single string or token row is one text.

    Raises:
        ValueError: what is neither strings nor rows of token ids.
    """
    single = isinstance(texts, str) or (isinstance(texts, Tensor) and texts.ndim < 2)
    found: list[Any] = [texts] if single or not isinstance(texts, Iterable) else list(texts)
    for text in found:
        _require_text(text)
    return found


def _require_text(text: object) -> None:
    row = isinstance(text, Tensor) and text.ndim == 1 and not text.is_floating_point()
    if not row and not isinstance(text, str):
        raise ValueError(
            "`texts` must be strings, or rows of token ids (integer tensors of one axis), got "
            f"{type(text).__name__}"
        )


def token_batches(host: AbstractHost, texts: Iterable[str]) -> Iterator[tuple[int, list[Tensor]]]:
    """(index of the batch's first text, token rows), each text cut at the model's context."""
    start = 0
    for batch in row_batches(host, texts):
        yield start, batch
        start += len(batch)


def read_rows(
    host: AbstractHost, rows: Sequence[Tensor], layers: Sequence[int]
) -> dict[int, Float[Tensor, "batch pos d_model"]]:
    """What the MLPs of some layers read, for rows of token ids; in float64.

    Rows may differ in length: they are padded on the right, which a causal model does not see.
    """
    tokens = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return {layer: value.double() for layer, value in host.read_streams(tokens, layers).items()}


def mlp_streams(model: Any, layer: int, texts: Iterable[str]) -> Float[Tensor, "token d_model"]:
    """The normalised stream that a layer's MLP reads, at every token of the texts.

    The first token (BOS) of each text is left out: its stream is unlike any other's. Memory
    is O(tokens * d_model), in float64.

    Raises:
        ValueError: if the texts hold no token.
    """
    host = get_host(model)
    found = []
    for _, rows in token_batches(host, texts):
        values = read_rows(host, rows, [layer])[layer]
        found += [value[1 : len(row)] for row, value in zip(rows, values, strict=True)]
    if not sum(len(value) for value in found):
        raise ValueError("the texts hold no token behind their first one")
    return torch.cat(found)


def hook_batches(
    host: AbstractHost, texts: Iterable[str | Int[Tensor, "..."]], hooks: Sequence[str]
) -> Iterator[dict[str, Float[Tensor, "token width"]]]:
    """What some hooks see at the tokens of texts (or of token rows), a few texts at a time.

    Each is cut at the context, and its first token (BOS) is left out. In float64.
    """
    for batch in row_batches(host, texts):
        yield _hook_values(host, batch, hooks)


def row_batches(
    host: AbstractHost, texts: Iterable[str | Int[Tensor, "..."]]
) -> Iterator[list[Tensor]]:
    """Token rows of texts (or of token rows), each cut at the context, a few at a time."""
    batch: list[Tensor] = []
    for text in [texts] if isinstance(texts, str) else texts:
        _require_text(text)
        row = host.to_tokens(text) if isinstance(text, str) else text
        batch.append(row[: host.n_ctx])
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _hook_values(
    host: AbstractHost, rows: Sequence[Tensor], hooks: Sequence[str]
) -> dict[str, Float[Tensor, "token width"]]:
    tokens = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    _, values = host.read(tokens, list(dict.fromkeys(hooks)))
    lengths = torch.tensor([len(row) for row in rows])
    places = torch.arange(tokens.shape[1])
    kept = ((places > 0) & (places < lengths[:, None])).to(host.device)
    return {hook: value[kept].double() for hook, value in values.items()}
