"""Random inputs: hypothesis strategies for small tensors, and makers of every factored form."""

import torch
from hypothesis import strategies as st

SIZES = st.integers(1, 5)


@st.composite
def tensors(draw, same_legs: bool = True, d_out: int | None = None, d_in: int | None = None):
    """A float64 BilinearTensor with sizes 1 to 5 and standard normal factors."""
    from tl_bilinear import BilinearTensor

    left = d_in or draw(SIZES)
    right = left if same_legs else draw(SIZES)
    out, rank = d_out or draw(SIZES), draw(SIZES)
    return BilinearTensor(*(normal(draw, size, rank) for size in (left, right, out)))


def normal(draw, *shape: int) -> torch.Tensor:
    """A standard normal matrix whose seed hypothesis chooses (and shrinks)."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@st.composite
def vectors(draw, size: int):
    return normal(draw, size)
