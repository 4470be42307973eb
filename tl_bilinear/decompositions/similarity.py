"""Similarity of layers, seeds and checkpoints: the cosine between their tensors.

    cos(A, B) = <A, B> / sqrt(<A, A> <B, B>)

(2605.15183). The inner product is that of the symmetrised tensors, because only the symmetric part
acts on one input: Frobenius, or Gaussian, E[A(x) . B(x)] over x ~ N(0, I) = 2 <As, Bs> +
<tr As, tr Bs>. After a norm inputs lie on a sphere instead, where Q and Q + aI are the same
function up to a constant: `gauge="traceless"` compares what is left without tr Q / d.

A cosine does not change when neurons are permuted, rescaled (left by a, right by b, out by 1/(ab))
or swap left and right, nor when both tensors rotate by one rotation. It does change when one of two
seeds rotates its residual stream: seeds are comparable in a common basis only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.decompositions.arguments import reads_one_space, require_sound
from tl_bilinear.decompositions.eigen import Gauge
from tl_bilinear.decompositions.gram import inner_product, traces
from tl_bilinear.tensor import BilinearTensor

InnerProduct = Literal["frobenius", "gaussian"]


@dataclass(frozen=True, eq=False)
class TensorSimilarity:
    """The cosine of two tensors, and what it was computed with."""

    cosine: Float[Tensor, ""]
    inner: Float[Tensor, ""]
    norm_a: Float[Tensor, ""]
    norm_b: Float[Tensor, ""]
    inner_product: InnerProduct
    symmetrized: bool
    gauge: Gauge

    def __float__(self) -> float:
        return float(self.cosine)


@dataclass(frozen=True, eq=False)
class SimilarityMatrix:
    """Cosines of every pair of several tensors."""

    cosines: Float[Tensor, "n n"]
    """Symmetric, ones on the diagonal."""
    norms: Float[Tensor, " n"]
    labels: tuple[str, ...]
    inner_product: InnerProduct
    symmetrized: bool
    gauge: Gauge

    def top(self, k: int) -> list[tuple[str, str, float]]:
        """The k most similar pairs, by |cosine|."""
        rows, columns = torch.triu_indices(*self.cosines.shape, offset=1)
        values = self.cosines[rows, columns]
        order = values.abs().argsort(descending=True)[:k]
        return [
            (self.labels[int(rows[i])], self.labels[int(columns[i])], float(values[i]))
            for i in order
        ]


def tensor_similarity(
    a: BilinearTensor,
    b: BilinearTensor,
    *,
    inner: InnerProduct = "frobenius",
    gauge: Gauge = "none",
    symmetrized: bool | None = None,
    dtype: torch.dtype = torch.float64,
) -> TensorSimilarity:
    """Cosine of two tensors that read and write the same spaces; their ranks may differ.

    10 rank_a rank_b d operations and half as many for each norm; rank x rank numbers exist only
    as blocks. Differentiable (every block is then kept: detach large weights).

    Args:
        inner: "frobenius" or "gaussian".
        gauge: "traceless" takes tr Q / d times the identity out of every output's matrix first.
        symmetrized: False compares tensors of two inputs as they stand; that is the default where
            the legs read two (`shared_input`).
        dtype: of the matrix products; sums of blocks are in float64 always.

    Raises:
        ValueError: different shapes, rank 0, numbers that are not finite, a tensor that is zero
            (it has no direction), an unknown `inner` or `gauge`, or "gaussian" or "traceless"
            for tensors that are not symmetrised.
    """
    symmetric = _checked([a, b], ["a", "b"], inner, gauge, symmetrized)
    tensors = [tensor.to(dtype) for tensor in (a, b)]
    norms = [_inner(tensor, tensor, inner, gauge, symmetric).sqrt() for tensor in tensors]
    _require_nonzero(norms, tensors, ["a", "b"])
    product = _inner(tensors[0], tensors[1], inner, gauge, symmetric)
    return TensorSimilarity(
        cosine=(product / (norms[0] * norms[1])).clamp(-1, 1),
        inner=product,
        norm_a=norms[0],
        norm_b=norms[1],
        inner_product=inner,
        symmetrized=symmetric,
        gauge=gauge,
    )


@torch.no_grad()
def similarity_matrix(
    tensors: Sequence[BilinearTensor],
    labels: Sequence[str] | None = None,
    *,
    inner: InnerProduct = "frobenius",
    gauge: Gauge = "none",
    symmetrized: bool | None = None,
    dtype: torch.dtype = torch.float64,
) -> SimilarityMatrix:
    """Cosines of all pairs, each pair once: `[host.mlp_tensor(l) for l in range(host.n_layers)]`.

    Args:
        tensors: of a model's layers, of seeds or of checkpoints; one shape, ranks may differ.
        labels: names of the rows; "0", "1", ... where None.

    Raises:
        ValueError: as `tensor_similarity`; no tensors, or labels of another number.
    """
    if not tensors:
        raise ValueError("`tensors` is empty: give at least one tensor")
    names = [str(i) for i in range(len(tensors))] if labels is None else list(labels)
    if len(names) != len(tensors):
        raise ValueError(f"`labels` has {len(names)} names for {len(tensors)} tensors")
    symmetric = _checked(
        tensors, [f"tensors[{i}]" for i in range(len(tensors))], inner, gauge, symmetrized
    )
    n = len(tensors)
    products = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        first = tensors[i].to(dtype)
        for j in range(i, n):
            second = first if i == j else tensors[j].to(dtype)
            products[i, j] = products[j, i] = _inner(first, second, inner, gauge, symmetric)
    norms = products.diagonal().sqrt()
    _require_nonzero(list(norms), tensors, names)
    cosines = (products / norms.outer(norms)).clamp(-1, 1).fill_diagonal_(1)
    return SimilarityMatrix(cosines, norms, tuple(names), inner, symmetric, gauge)


def _inner(
    a: BilinearTensor, b: BilinearTensor, inner: InnerProduct, gauge: Gauge, symmetric: bool
) -> Float[Tensor, ""]:
    product = inner_product(a, b, symmetric)
    if not symmetric or (inner, gauge) == ("frobenius", "none"):
        return product
    shared = traces(a) @ traces(b)
    if gauge == "traceless":  # nothing is left of the traces, in either inner product
        product, shared = product - shared / a.d_in, torch.zeros_like(shared)
    return product if inner == "frobenius" else 2 * product + shared


def _checked(
    tensors: Sequence[BilinearTensor],
    names: Sequence[str],
    inner: str,
    gauge: str,
    symmetrized: bool | None,
) -> bool:
    """Whether the tensors are symmetrised; one error for anything that cannot be compared."""
    for tensor, name in zip(tensors, names, strict=True):
        require_sound(tensor, name)
    shapes = [(tensor.d_out, tensor.d_left, tensor.d_right) for tensor in tensors]
    for shape, name in zip(shapes, names, strict=True):
        if shape != shapes[0]:
            raise ValueError(
                "a similarity needs tensors of one shape (d_out, d_left, d_right): "
                f"`{names[0]}` has {shapes[0]}, `{name}` has {shape}"
            )
    if inner not in ("frobenius", "gaussian"):
        raise ValueError(f'`inner` must be "frobenius" or "gaussian", got {inner!r}')
    if gauge not in ("none", "traceless"):
        raise ValueError(f'`gauge` must be "none" or "traceless", got {gauge!r}')
    symmetric = reads_one_space(tensors[0], symmetrized)
    if not symmetric and (inner, gauge) != ("frobenius", "none"):
        raise ValueError(
            'inner="gaussian" and gauge="traceless" are for symmetrised tensors, which read one '
            'input: use inner="frobenius" and gauge="none" for two'
        )
    return symmetric


def _require_nonzero(
    norms: Sequence[Tensor], tensors: Sequence[BilinearTensor], names: Sequence[str]
) -> None:
    """Against the norms of the terms: what is left of cancelled terms is rounding."""
    for norm, tensor, name in zip(norms, tensors, names, strict=True):
        sizes = tensor.left.norm(dim=0) * tensor.right.norm(dim=0) * tensor.out.norm(dim=0)
        if not norm > torch.finfo(tensor.out.dtype).eps ** 0.5 * sizes.double().norm():
            raise ValueError(
                f"`{name}` acts as zero (its symmetric part, in this gauge): it has no cosine"
            )
