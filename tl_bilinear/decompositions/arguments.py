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
        if not torch.isfinite(getattr(tensor, factor)).all():
            raise ValueError(
                f"`{name}.{factor}` has entries that are not finite: look for NaN or infinite "
                "weights"
            )


def require_directions(u: Float[Tensor, "*batch d_out"], tensor: BilinearTensor, name: str) -> None:
    """A ValueError for directions of a wrong length, none at all, or not finite."""
    if u.shape[-1:] != (tensor.d_out,) or u.numel() == 0:
        raise ValueError(
            f"`{name}` must have {tensor.d_out} entries on its last axis (d_out of the tensor) and "
            f"at least one direction, got shape {tuple(u.shape)}"
        )
    if not torch.isfinite(u).all():
        raise ValueError(f"`{name}` has entries that are not finite")


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
