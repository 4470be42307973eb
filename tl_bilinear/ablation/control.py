"""Random modes that are matched to a mode: the control of an ablation.

A random mode keeps layer, direction and sign, draws its eigenvector uniformly from the
sphere and takes the eigenvalue that gives it the same root-mean-square contribution over a
text. Ablating it disturbs the same direction by as much, so what the real mode does beyond
it is due to what the mode reads.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.decompositions import Mode


def rms_contribution(mode: Mode, x: Float[Tensor, "token d_in"]) -> float:
    """Root mean square of lambda (v.x)^2 over the tokens."""
    return float(mode.contributions(x).square().mean().sqrt())


def matched_random_modes(
    mode: Mode, x: Float[Tensor, "token d_in"], draws: int = 20, seed: int = 0
) -> tuple[Mode, ...]:
    """`draws` random modes with `mode`'s root-mean-square contribution over `x`.

    Args:
        x: the normalised stream that the mode's layer reads (`hook_normalized`), over a text.

    Raises:
        ValueError: no tokens, or fewer than one draw.
    """
    if draws < 1 or x.shape[0] == 0:
        raise ValueError(
            f"at least one draw and one token are needed, got {draws} and {x.shape[0]}"
        )
    generator = torch.Generator().manual_seed(seed)
    wanted = rms_contribution(mode, x)
    modes: list[Mode] = []
    for index in range(draws):
        vector = torch.randn(x.shape[1], generator=generator, dtype=torch.float64)
        vector = (vector / vector.norm()).to(x)
        drawn = replace(mode, eigenvalue=1.0, eigenvector=vector, label=f"random {index}")
        eigenvalue = wanted / rms_contribution(drawn, x)
        modes.append(replace(drawn, eigenvalue=eigenvalue if mode.eigenvalue >= 0 else -eigenvalue))
    return tuple(modes)


def two_sided_rank(value: float, controls: Sequence[float]) -> int:
    """How many controls are at least as far from zero as `value`."""
    return sum(abs(control) >= abs(value) for control in controls)
