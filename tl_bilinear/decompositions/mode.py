"""One mode of one MLP: the unit that is attributed, shown and ablated."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Mode:
    """`(layer, u, lambda, v)`: adds `lambda (v.x)^2` to the layer's output along `u`.

    x is the MLP's input after its norm, before the norm's gain (which is folded into v). A mode
    that was read with frozen gates (its label says so) is one of a single token's map: v.x can
    be taken anywhere, but lambda (v.x)^2 adds to the model at that token alone.
    """

    layer: int
    direction: Float[Tensor, " d_out"]
    """u, in the MLP's output space; not normalised."""
    eigenvalue: float
    eigenvector: Float[Tensor, " d_in"]
    """v, of norm one, in the space of the normalised stream."""
    label: str = ""

    def activations(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch"]:
        """v.x, signed."""
        return x @ self.eigenvector.to(x)

    def contributions(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch"]:
        """lambda (v.x)^2, in units of u.y where y is the MLP's output."""
        return self.eigenvalue * self.activations(x) ** 2

    def __repr__(self) -> str:
        return f"Mode({self.label or f'L{self.layer} λ={self.eigenvalue:+.3g}'})"
