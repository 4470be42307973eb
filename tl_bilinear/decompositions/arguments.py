"""What decompositions accept: one clear error for each thing that they do not."""

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.tensor import BilinearTensor


def require_sound(tensor: BilinearTensor, name: str = "tensor") -> None:
    """A ValueError for a tensor of rank 0, and for factors that are not finite."""
    if tensor.rank == 0 or 0 in (tensor.d_out, tensor.d_left, tensor.d_right):
        raise ValueError(
            f"`{name}` is empty (rank {tensor.rank}, d_out {tensor.d_out}, d_left "
            f"{tensor.d_left}, d_right {tensor.d_right}): there is nothing to decompose"
        )
    for factor in ("left", "right", "out"):
        if not is_finite(getattr(tensor, factor)):
            raise ValueError(
                f"`{name}.{factor}` has entries that are not finite: look for NaN or infinite "
                "weights"
            )


def require_directions(
    u: Float[Tensor, "*batch d_out"],
    tensor: BilinearTensor,
    name: str = "u",
    *,
    zero: bool = True,
    none: bool = False,
) -> None:
    """A ValueError for directions of a wrong length or not finite.

    Args:
        zero: whether a direction may be zero.
        none: whether there may be no direction at all.
    """
    if u.shape[-1:] != (tensor.d_out,) or not (none or u.numel()):
        raise ValueError(
            f"`{name}` must have {tensor.d_out} entries on its last axis (d_out of the tensor)"
            f"{'' if none else ' and at least one direction'}, got shape {tuple(u.shape)}"
        )
    if not is_finite(u):
        raise ValueError(f"`{name}` has entries that are not finite")
    empty = (u == 0).all(-1)
    if not zero and empty.any():
        place = "" if u.ndim == 1 else f" at {empty.nonzero()[0].tolist()} of the batch"
        raise ValueError(
            f"`{name}` is zero{place}: a direction needs an entry that is not zero (is it a "
            "difference of two equal targets?)"
        )


def require_interaction(
    u: Float[Tensor, "*batch d_out"], tensor: BilinearTensor, dtype: torch.dtype
) -> None:
    """A ValueError for what decompositions of Q(u) refuse: directions, dtype, NaN weights."""
    require_directions(u, tensor, zero=False, none=True)
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"`dtype` must be torch.float32 or torch.float64, got {dtype}")
    if not (is_finite(tensor.left) and is_finite(tensor.right)):
        raise not_finite()


def is_finite(values: Float[Tensor, "*shape"]) -> bool:
    """Whether no entry is NaN or infinite: they show in the sum, which is the quickest to take."""
    values = values.detach()
    return bool(torch.isfinite(values.sum()) or torch.isfinite(values).all())


def not_finite() -> ValueError:
    return ValueError(
        "the interaction matrix has entries that are not finite: look for NaN or infinite "
        "weights, or a direction that is not finite"
    )


def require_count(k: int, most: int, name: str, what: str) -> None:
    """A ValueError unless 1 <= k <= most."""
    if not 1 <= k <= most:
        raise ValueError(f"`{name}` must be between 1 and {most} ({what}), got {k}")


def reads_one_space(tensor: BilinearTensor, symmetrized: bool | None) -> bool:
    """Whether the symmetric part is meant: by default where both legs read one input.

    Raises:
        ValueError: `symmetrized=True` for legs of two inputs.
    """
    if symmetrized and not tensor.shared_input:
        raise ValueError(
            "`symmetrized=True` needs legs that read one input, got a tensor of two (d_left "
            f"{tensor.d_left}, d_right {tensor.d_right})"
        )
    return bool(tensor.shared_input) if symmetrized is None else symmetrized
