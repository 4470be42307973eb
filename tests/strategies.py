"""Random inputs: hypothesis strategies for small tensors, and makers of every factored form."""

import torch
from hypothesis import strategies as st

SIZES = st.integers(1, 5)


@st.composite
def tensors(draw, same_legs: bool = True, d_out: int | None = None, d_in: int | None = None):
    """A float64 BilinearTensor with sizes 1 to 5 and standard normal factors.

    Without `same_legs` it reads two inputs, which may be of one size.
    """
    from tl_bilinear import BilinearTensor

    left = d_in or draw(SIZES)
    right = left if same_legs else draw(SIZES)
    out, rank = d_out or draw(SIZES), draw(SIZES)
    factors = (normal(draw, size, rank) for size in (left, right, out))
    return BilinearTensor(*factors, shared_input=same_legs)


@st.composite
def maps(draw, same_legs: bool = True, d_out: int | None = None, d_in: int | None = None):
    """A float64 QuadraticMap with standard normal biases."""
    from tl_bilinear import QuadraticMap

    tensor = draw(tensors(same_legs, d_out, d_in))
    biases = (normal(draw, size) for size in (tensor.rank, tensor.rank, tensor.d_out))
    return QuadraticMap(tensor, *biases)


def normal(draw, *shape: int) -> torch.Tensor:
    """A standard normal matrix whose seed hypothesis chooses (and shrinks)."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@st.composite
def vectors(draw, size: int):
    return normal(draw, size)
