"""What is computed per direction: a function of a tensor and directions, with its memory."""

import functools
import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tl_bilinear.tensor import BilinearTensor

Function = Callable[[BilinearTensor, Tensor], dict[str, Tensor]]


class AbstractComputation(ABC):
    """Named tensors per direction, the directions on the leading axis.

    A row must depend on its own direction alone. Nothing that is computed may depend on
    chance: a chunk that is computed again must give the same bits.
    """

    name: str
    described: str
    """One line for the command's help."""

    @property
    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """What decides the result, as JSON holds it: a resumed sweep must have the same."""

    @abstractmethod
    def __call__(
        self, tensor: BilinearTensor, u: Float[Tensor, "chunk d_out"]
    ) -> dict[str, Tensor]: ...

    @abstractmethod
    def bytes_per_direction(self, tensor: BilinearTensor) -> int:
        """An upper bound of what one more direction takes at the worst moment."""

    def bytes_fixed(self, tensor: BilinearTensor) -> int:
        """An upper bound of what it takes whatever the number of directions."""
        return matrix_bytes(tensor, 3 * tensor.rank, 8 * tensor.d_in)

    def require_fit(self, tensor: BilinearTensor) -> None:  # noqa: B027  (most arguments fit)
        """Raise ValueError where the arguments do not fit this tensor; before anything is run."""


class FunctionComputation(AbstractComputation):
    """Any Python function. Its source and the arguments of a `functools.partial` are recorded.

    What it reads from elsewhere (globals, a closure) is not: give such a sweep its own folder.
    """

    described = "a Python function"

    def __init__(self, function: Function, bytes_per_direction: int | None = None):
        self.function = function
        self._bytes = bytes_per_direction
        inner = function
        self._bound: list[str] = []
        while isinstance(inner, functools.partial):
            bound = [*map(repr, inner.args), *(f"{k}={v!r}" for k, v in inner.keywords.items())]
            self._bound += bound
            inner = inner.func
        module = getattr(inner, "__module__", "")
        self.name = f"{module}.{getattr(inner, '__qualname__', type(inner).__name__)}"
        self._source = _source_digest(inner)

    @property
    def arguments(self) -> dict[str, Any]:
        return {"bound": self._bound, "source": self._source}

    def __call__(self, tensor: BilinearTensor, u: Tensor) -> Any:
        """Whatever the function returns; the sweep checks it."""
        return self.function(tensor, u)

    def bytes_per_direction(self, tensor: BilinearTensor) -> int:
        """As given; else what a full eigendecomposition with its vectors takes."""
        return eigen_bytes(tensor) if self._bytes is None else self._bytes


def eigen_bytes(tensor: BilinearTensor) -> int:
    """Bytes per direction of Q(u) in float64 and its eigenpairs.

    First the weighted left factor [d_in, rank] beside two matrices [d_in, d_in]; then, without
    it, six of these: symmetrised copies, eigh's in- and output, ordered and signed vectors.
    """
    return matrix_bytes(tensor, max(tensor.rank + 2 * tensor.d_in, 6 * tensor.d_in))


def matrix_bytes(tensor: BilinearTensor, *widths: int) -> int:
    """Bytes of float64 matrices with d_in rows and these numbers of columns."""
    return 8 * tensor.d_in * sum(widths)


def _source_digest(function: Any) -> str | None:
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        return None
    return hashlib.sha256(text.encode()).hexdigest()[:16]
