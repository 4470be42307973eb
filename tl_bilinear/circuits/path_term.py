"""One term of a one-layer model's path expansion, as a labelled result."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

SYMBOLS = {
    "attention": "ρ_attn",
    "attention post-norm": "σ_attn",
    "MLP": "ρ_mlp",
    "MLP post-norm": "σ_mlp",
    "final": "ρ_final",
}
POWERS = {1: "", 2: "²"}


@dataclass(frozen=True)
class PathTerm:
    """A term from the weights, over all tokens at once; its denominators and patterns are named."""

    name: str
    """Such as "W_U W_E", "W_U OV1 W_E", "W_U B(W_E, OV0 W_E)"; 1 is the MLP's own bias."""
    sources: tuple[str, ...]
    """What it is made of: none, one, or the two that the MLP multiplies."""
    arguments: tuple[str, ...]
    """What it is a function of: "token" (at the position itself), "attended token (H0)", ..."""
    order: int
    """How many of the arguments are tokens."""
    patterns: tuple[int, ...]
    """Heads whose attention patterns weigh it; a head that occurs twice sums over two positions."""
    denominators: Mapping[str, int]
    """How often each norm's denominator divides it on a prompt; those of the attention's norm are
    the attended positions'."""
    norm: float
    """Frobenius norm over logits and arguments, every denominator one."""
    size: float
    """Root mean square over its arguments (all equally likely) of the logits' norm, divided by
    the denominators that the expansion was given (one, where none were)."""
    share: float
    """size^2 over the sum of all terms' size^2."""

    @property
    def scale(self) -> str:
        """The denominators as text, such as "1/(ρ_attn ρ_mlp² ρ_final)"."""
        parts = []
        for name, power in self.denominators.items():
            parts.append(SYMBOLS[name] + POWERS.get(power, f"^{power}"))
        if not parts:
            return "1"
        return f"1/{parts[0]}" if len(parts) == 1 else f"1/({' '.join(parts)})"


@dataclass(frozen=True, eq=False)
class TokenMatrix:
    """`T[o, i] = sum_r out[o, r] inputs[i, r]`: a term of one argument (or none: one row)."""

    out: Float[Tensor, "d_out rank"]
    inputs: Float[Tensor, "n rank"]

    def to_dense(self) -> Float[Tensor, "d_out n"]:
        """All d_out * n numbers."""
        return self.out @ self.inputs.T

    def norm(self) -> Float[Tensor, ""]:
        """Frobenius norm by Gram matrices. O((d_out + n) rank^2)."""
        squared = ((self.out.T @ self.out) * (self.inputs.T @ self.inputs)).sum()
        return squared.clamp_min(0).sqrt()
