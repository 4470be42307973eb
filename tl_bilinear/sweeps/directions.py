"""What is swept beside the layers: output directions, with a label each.

A direction says where it is read. "logits": after the final norm, as a column of W_U is; the
norm's gain and centring are folded in, as attribution does, with its denominator left out.
"stream": in the residual stream, as an SAE's features are. "mlp_out": at the MLP's own output.
Between the last two stands a post-norm in Gemma 2 and 3 and OLMo2, and nothing elsewhere.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.target import Target, make_readouts

Space = Literal["logits", "stream", "mlp_out"]
ROWS = 1024
"""Rows that are checked and digested at once."""


@dataclass(frozen=True, eq=False)
class Directions:
    """Rows of `vectors`, which may be a view of the model's weights or of a mapped file.

    Raises:
        ValueError: not one label per row, no rows, or an unknown space.
    """

    vectors: Float[Tensor, "direction d_model"]
    labels: tuple[str, ...]
    space: Space
    source: str
    """Where they come from, in words; kept in the sweep's manifest."""

    def __post_init__(self):
        if self.vectors.ndim != 2 or not len(self.vectors):
            raise ValueError(
                "directions must be a matrix [n, d_model] with a row each, got shape "
                f"{list(self.vectors.shape)}"
            )
        if len(self.labels) != len(self.vectors):
            raise ValueError(
                f"one label per direction is needed: {len(self.labels)} labels for "
                f"{len(self.vectors)} directions"
            )
        if self.space not in get_args(Space):
            raise ValueError(f"`space` must be one of {list(get_args(Space))}, got {self.space!r}")

    def __len__(self) -> int:
        return len(self.vectors)

    def require_usable(self, d_model: int) -> None:
        """Raise ValueError for a wrong width, rows that are not finite, or rows of zeros."""
        if self.vectors.shape[1] != d_model:
            raise ValueError(
                f"directions from {self.source} have {self.vectors.shape[1]} entries each, and "
                f"this model's outputs {d_model} (d_model): give rows of that width (a matrix of "
                "columns must be transposed)"
            )
        infinite: list[int] = []
        zero: list[int] = []
        for start, rows in self._blocks():
            finite = torch.isfinite(rows).all(-1)
            infinite += (start + (~finite).nonzero().flatten()).tolist()
            zero += (start + (rows == 0).all(-1).nonzero().flatten()).tolist()
        for found, what in ((infinite, "entries that are not finite"), (zero, "only zeros")):
            if found:
                named = ", ".join(str(row) for row in found[:5]) + (", ..." if found[5:] else "")
                raise ValueError(
                    f"{len(found)} of the {len(self)} directions from {self.source} have {what} "
                    f"(rows {named}): leave them out"
                )

    def require_nonzero_when_folded(
        self, host: AbstractHost, layers: Sequence[int], dtype: torch.dtype
    ) -> None:
        """Raise ValueError for a direction of which a norm's gain or the dtype leaves nothing."""
        for layer in layers if "post-norms" in self.folded(host, layers) else layers[:1]:
            for start in range(0, len(self), ROWS):
                u = self.at(host, layer, start, min(start + ROWS, len(self))).to(dtype)
                zero = (u == 0).all(-1).nonzero().flatten()
                if len(zero):
                    raise ValueError(
                        f"direction {start + int(zero[0])} from {self.source} is zero at layer "
                        f"{layer} once the norms are folded in, in {dtype}: leave it out"
                    )

    def digest(self) -> str:
        """Sixteen hex digits of all entries and labels."""
        found = hashlib.sha256("\0".join(self.labels).encode())
        for _, rows in self._blocks():
            found.update(rows.contiguous().view(torch.uint8).numpy().data)
        return found.hexdigest()[:16]

    def at(
        self, host: AbstractHost, layer: int, start: int, stop: int
    ) -> Float[Tensor, "chunk d_model"]:
        """Rows start to stop as u at a layer's `mlp_out_site`, norms folded in; in float64."""
        u = self.vectors[start:stop].detach().to(host.device, torch.float64)
        if self.space == "logits":
            u = host.fold_readout(u)
        if self.space != "mlp_out":
            u = host.mlp_post_norm(layer).fold_readout(u)
        return u

    def folded(self, host: AbstractHost, layers: Sequence[int]) -> tuple[str, ...]:
        """The norms that `at` folds in, by name."""
        names = []
        if self.space == "logits" and host.final_norm().exists:
            names.append("final norm")
        if self.space != "mlp_out" and any(host.mlp_post_norm(layer).exists for layer in layers):
            names.append("post-norms")
        return tuple(names)

    def _blocks(self) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, len(self), ROWS):
            yield start, self.vectors[start : start + ROWS].detach().cpu()


def token_directions(model: Any, tokens: range | Sequence[int] | None = None) -> Directions:
    """Columns of the unembedding: all, or those of some token ids. A range is not copied.

    Raises:
        ValueError: no token, or one out of range.
    """
    host = get_host(model)
    tokens = range(host.d_vocab) if tokens is None else tokens
    if not len(tokens) or min(tokens) < 0 or max(tokens) >= host.d_vocab:
        raise ValueError(
            f"tokens must be ids from 0 to {host.d_vocab - 1} (d_vocab is {host.d_vocab}), got "
            f"{tokens if isinstance(tokens, range) else list(tokens)[:5]}"
        )
    rows = host.W_U.detach().T
    if isinstance(tokens, range) and tokens.step == 1:
        vectors = rows[tokens.start : tokens.stop]
        source = f"unembedding, tokens {tokens.start}-{tokens.stop - 1}"
    else:
        vectors = rows[torch.tensor(list(tokens), device=rows.device)]
        source = f"unembedding, {len(tokens)} tokens"
    labels = [str(token) for token in tokens]
    if host.model.tokenizer is not None:
        labels = host.str_tokens(torch.tensor(list(tokens)))
    return Directions(vectors, tuple(labels), "logits", source)


def target_directions(model: Any, targets: Sequence[Target], source: str = "targets") -> Directions:
    """Targets as attribution takes them: a token's text or id, a pair (first minus second).

    Raises:
        ValueError: no target, an unknown one, or one of several tokens, which has no single
            direction.
    """
    host = get_host(model)
    if not targets:
        raise ValueError("no targets: give at least one string, token id or pair of these")
    found = []
    for target in targets:
        readouts = make_readouts(host, target, ["a"])  # any text in front of it
        first = next(iter(readouts))
        if len(readouts) > 1 or first.prefix:
            raise ValueError(
                f"the target {target!r} is of several tokens, which are read at several positions: "
                "a sweep needs targets of one token (mind the space in front)"
            )
        found.append(first)
    vectors = torch.stack([readout.direction for readout in found])
    return Directions(vectors, tuple(readout.label for readout in found), "logits", source)


def file_directions(
    path: str | Path, key: str | None = None, *, columns: bool = False, space: Space = "stream"
) -> Directions:
    """Rows of one matrix in a safetensors file, such as an SAE's features; mapped, not read.

    Args:
        key: the tensor's name; it may be left out where the file holds one matrix.
        columns: the directions are the matrix's columns instead.

    Raises:
        ValueError: no such file, not a safetensors file, no such matrix.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}: give a safetensors file of directions")
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
            matrices = [name for name, shape in shapes.items() if len(shape) == 2]
            if key is None and len(matrices) == 1:
                key = matrices[0]
            if key not in matrices:
                wanted = "no matrix was named" if key is None else f"it has no matrix {key!r}"
                raise ValueError(f"{path}: {wanted}; its tensors are {shapes}")
            vectors = file.get_tensor(key)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or a damaged one: {error}") from None
    vectors = vectors.T if columns else vectors
    if not vectors.is_floating_point():
        raise ValueError(f"{path}: {key!r} holds {vectors.dtype}, and directions are real numbers")
    labels = tuple(f"{key}[{row}]" for row in range(len(vectors)))
    kind = "columns" if columns else "rows"
    return Directions(vectors, labels, space, f"{kind} of {key} in {path.name}")


def output_basis(model: Any) -> Directions:
    """The coordinate axes of the MLP's output space."""
    d_model = get_host(model).d_model
    labels = tuple(f"e{axis}" for axis in range(d_model))
    return Directions(torch.eye(d_model), labels, "mlp_out", "output basis")
