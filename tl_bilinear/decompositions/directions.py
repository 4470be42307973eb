"""What every decomposition by output directions asks of them."""

import math

import torch
from torch import Tensor

from tl_bilinear.tensor import BilinearTensor


def check_directions(tensor: BilinearTensor, u: Tensor, dtype: torch.dtype) -> None:
    """Raises ValueError: a wrong length, a direction that is zero or not finite, NaN weights."""
    if u.shape[-1:] != (tensor.d_out,):
        raise ValueError(
            f"`u` must have {tensor.d_out} entries on its last axis (d_out of the tensor), "
            f"got shape {tuple(u.shape)}"
        )
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"`dtype` must be torch.float32 or torch.float64, got {dtype}")
    if not all(is_finite(each) for each in (u, tensor.left, tensor.right)):
        raise not_finite()
    zero = (u == 0).all(-1)
    if zero.any():
        place = "" if u.ndim == 1 else f" at {zero.nonzero()[0].tolist()} of the batch"
        raise ValueError(
            f"`u` is zero{place}: a direction needs an entry that is not zero (is it a difference "
            "of two equal targets?)"
        )


def is_finite(values: Tensor) -> bool:
    """One pass and no copy: both extremes are NaN where one entry is."""
    if not values.numel():
        return True
    return all(math.isfinite(extreme) for extreme in values.detach().aminmax())


def not_finite() -> ValueError:
    return ValueError(
        "the interaction matrix has entries that are not finite: look for NaN or infinite "
        "weights, or a direction that is not finite"
    )
