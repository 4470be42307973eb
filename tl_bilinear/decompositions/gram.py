"""Gram matrices and inner products of factored tensors, streamed over the rank axis.

With K = ((L^T L) * (R^T R) + (L^T R) * (R^T L)) / 2, out K out^T is the Gram matrix of the
symmetrised tensor's output unfolding (2605.15183 gives the same expression across two tensors).
With O = out^T out, the input unfolding's is

    ( L (R^T R * O) L^T + L (R^T L * O) R^T + R (L^T R * O) L^T + R (L^T L * O) R^T ) / 4.

K and its kin are rank x rank: they exist only as blocks of BLOCK x BLOCK. A tensor with itself
needs half of the blocks.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.tensor import BilinearTensor

BLOCK = 256
# Slices are exact to rounding of the tensors, Grams to its square root: below this many operations
# (well under a second) the slices are taken whatever they cost beside the Gram.
_CHEAP = 4e9


@dataclass(frozen=True, eq=False)
class ModeGrams:
    """Gram matrices of the three unfoldings, in float64; `right` is `left` if symmetrised."""

    out: Float[Tensor, "d_out d_out"]
    left: Float[Tensor, "d_left d_left"]
    right: Float[Tensor, "d_right d_right"]


def blocks(size: int, length: int | None = None) -> list[slice]:
    """Consecutive slices of at most `length` (BLOCK where it is None)."""
    length = length or BLOCK
    return [slice(start, min(start + length, size)) for start in range(0, size, length)]


def mode_grams(tensor: BilinearTensor, symmetric: bool) -> ModeGrams:
    """Gram matrices of all unfoldings. 10 rank^2 d operations, O(rank d + d^2) memory.

    Products are taken in the tensor's dtype, sums over blocks of columns in float64.
    """
    return _symmetric_grams(tensor) if symmetric else _separate_grams(tensor)


def _symmetric_grams(tensor: BilinearTensor) -> ModeGrams:
    left, right, out = tensor.left, tensor.right, tensor.out
    gram_out, gram_in = _zeros(out), _zeros(left)
    parts = blocks(tensor.rank)
    for last, part in enumerate(parts):
        legs, swapped = torch.cat([left[:, part], right[:, part]], 1), _swapped(tensor, part)
        sum_out, sum_in = torch.zeros_like(out[:, part]), torch.zeros_like(legs)
        for other in parts[: last + 1]:
            products = torch.cat([left[:, other], right[:, other]], 1).T @ legs
            n, m = other.stop - other.start, part.stop - part.start
            kernel = products[:n, :m] * products[n:, m:]
            kernel.addcmul_(products[:n, m:], products[n:, :m])
            outs = out[:, other].T @ out[:, part]
            if other is part:  # the transpose is added at the end
                kernel, outs = kernel / 2, outs / 2
            sum_out.addmm_(out[:, other], kernel)
            products.view(2, n, 2, m).mul_(outs[None, :, None, :])
            sum_in.addmm_(_swapped(tensor, other), products)
        gram_out += sum_out @ out[:, part].T
        gram_in += sum_in @ swapped.T
    inputs = (gram_in + gram_in.T) / 4
    return ModeGrams((gram_out + gram_out.T) / 2, inputs, inputs)


def _separate_grams(tensor: BilinearTensor) -> ModeGrams:
    factors = (tensor.out, tensor.left, tensor.right)
    grams = [_zeros(factor) for factor in factors]
    parts = blocks(tensor.rank)
    for last, part in enumerate(parts):
        sums = [torch.zeros_like(factor[:, part]) for factor in factors]
        for other in parts[: last + 1]:
            outs, lefts, rights = (factor[:, other].T @ factor[:, part] for factor in factors)
            scale = 0.5 if other is part else 1.0
            for total, factor, kernel in zip(
                sums, factors, (lefts * rights, outs * rights, outs * lefts), strict=True
            ):
                total.addmm_(factor[:, other], kernel, alpha=scale)
        for gram, factor, total in zip(grams, factors, sums, strict=True):
            gram += total @ factor[:, part].T
    return ModeGrams(*(gram + gram.T for gram in grams))


def input_gram(tensor: BilinearTensor) -> Float[Tensor, "d_in d_in"]:
    """Gram matrix of the symmetrised input unfolding, sum_o Q_o^2, by the cheaper of two ways.

    Slice by slice where the outputs are few (O(d_out (rank d^2 + d^3))), over the rank axis where
    they are many.
    """
    d, rank = tensor.d_in, tensor.rank
    if tensor.d_out * (rank * d + d * d) >= 5 * rank * rank:
        return _symmetric_grams(tensor).left
    total = _zeros(tensor.left)
    for matrix in slices(tensor, symmetric=True):
        total += matrix @ matrix
    return total


def inner_product(a: BilinearTensor, b: BilinearTensor, symmetric: bool) -> Float[Tensor, ""]:
    """`<A, B>`, of symmetric parts if `symmetric`; 10 rank_a rank_b d operations, half if A is B.

    Products are in the tensors' dtype, sums of blocks in float64. Gradients flow (and keep every
    block).
    """
    total = torch.zeros((), dtype=torch.float64, device=a.out.device)
    same = a is b
    parts = blocks(a.rank)
    for last, part in enumerate(blocks(b.rank)):
        legs = torch.cat([b.left[:, part], b.right[:, part]], 1) if symmetric else None
        for index, other in enumerate(parts[: last + 1] if same else parts):
            if legs is None:
                kernel = (a.left[:, other].T @ b.left[:, part]) * (
                    a.right[:, other].T @ b.right[:, part]
                )
            else:
                products = torch.cat([a.left[:, other], a.right[:, other]], 1).T @ legs
                n, m = other.stop - other.start, part.stop - part.start
                kernel = torch.addcmul(
                    products[:n, :m] * products[n:, m:], products[:n, m:], products[n:, :m]
                )
            kernel = kernel * (a.out[:, other].T @ b.out[:, part])
            term = kernel.sum(dtype=torch.float64) / (2 if symmetric else 1)
            total = total + (2 * term if same and index < last else term)
    return total


def traces(tensor: BilinearTensor) -> Float[Tensor, " d_out"]:
    """tr B[o] of every output, in float64. O(rank d)."""
    return (tensor.out @ (tensor.left * tensor.right).sum(0)).double()


def distance(a: BilinearTensor, b: BilinearTensor, symmetric: bool) -> Float[Tensor, ""]:
    """Frobenius norm of A - B (of symmetric parts if `symmetric`), never dense.

    Slice by slice where that is cheap, exact to rounding of the tensors themselves; otherwise from
    inner products, where a distance below 1e-7 of the norms is rounding.
    """
    difference = a - b
    if slices_are_cheap(difference):
        return norm_by_slices(difference, symmetric)
    return inner_product(difference, difference, symmetric).clamp_min(0).sqrt()


def slices_are_cheap(tensor: BilinearTensor) -> bool:
    """Whether all slices cost less than the Gram of the rank axis, or next to nothing."""
    by_slices = 2 * tensor.d_out * tensor.d_left * tensor.d_right * tensor.rank
    by_gram = 5 * tensor.rank**2 * max(tensor.d_left, tensor.d_right)
    return by_slices <= max(_CHEAP, by_gram)


def norm_by_slices(tensor: BilinearTensor, symmetric: bool) -> Float[Tensor, ""]:
    """Frobenius norm from one slice at a time. O(d_out rank d^2), O(d^2 + rank d) memory."""
    total = torch.zeros((), dtype=torch.float64, device=tensor.out.device)
    for matrix in slices(tensor, symmetric):
        total = total + matrix.square().sum(dtype=torch.float64)
    return total.sqrt()


def slices(tensor: BilinearTensor, symmetric: bool):
    """B[o] for every output in turn, symmetrised if `symmetric`."""
    for weights in tensor.out:
        matrix = (tensor.left * weights) @ tensor.right.T
        yield (matrix + matrix.T) / 2 if symmetric else matrix


def _zeros(factor: Float[Tensor, "size rank"]) -> Float[Tensor, "size size"]:
    return torch.zeros(len(factor), len(factor), dtype=torch.float64, device=factor.device)


def _swapped(tensor: BilinearTensor, part: slice) -> Float[Tensor, "d_in two_n"]:
    return torch.cat([tensor.right[:, part], tensor.left[:, part]], 1)
