"""Groups of equal spectral values: inside one only the span of the vectors means something."""

from jaxtyping import Float
from torch import Tensor


def groups_of_equals(
    values: Float[Tensor, " k"], rtol: float = 1e-6
) -> tuple[tuple[int, ...], ...]:
    """Indices whose values agree within `rtol` of the largest magnitude, neighbour by neighbour."""
    numbers = values.tolist()
    if not numbers:
        return ()
    scale = max(abs(number) for number in numbers)
    order = sorted(range(len(numbers)), key=lambda index: numbers[index])
    groups = [[order[0]]]
    for before, index in zip(order, order[1:], strict=False):
        if numbers[index] - numbers[before] <= rtol * scale:
            groups[-1].append(index)
        else:
            groups.append([index])
    return tuple(sorted(tuple(sorted(group)) for group in groups if len(group) > 1))
