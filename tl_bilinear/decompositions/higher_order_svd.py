"""Higher-order SVD of a bilinear tensor: the singular vectors of its three unfoldings.

The output unfolding [d_out, d_in^2] has left singular vectors u_k (output modes, directions of
output space) and right singular vectors Q(u_k) / sigma_k: interaction matrices, to be
eigendecomposed in turn (2410.08417 section 3.3). The input unfolding gives the input modes; it is
the same for both legs of a symmetrised tensor. The dense tensor is never built: see `gram`.

    H = tlb.hosvd(B, k=8)
    H.singular_values, H.output_modes, H.eigendecompose(0).eigenvalues
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.decompositions.arguments import reads_one_space, require_sound
from tl_bilinear.decompositions.compression import Compressed, compress
from tl_bilinear.decompositions.eigen import Eigendecomposition, Gauge, eigendecompose
from tl_bilinear.decompositions.gram import (
    distance,
    inner_product,
    mode_grams,
    slices_are_cheap,
)
from tl_bilinear.decompositions.mode_spectrum import (
    ModeSpectrum,
    spectrum_from_gram,
    spectrum_from_qr,
)
from tl_bilinear.tensor import BilinearTensor

Small = Literal["bound", "qr"]
InputCount = int | tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class HOSVD:
    """Output and input modes of a tensor, with the core kept factored."""

    tensor: BilinearTensor
    """What was decomposed; modes project it, nothing dense is kept."""
    output: ModeSpectrum
    left: ModeSpectrum
    right: ModeSpectrum
    """The left spectrum itself where the tensor is symmetrised."""
    error: Float[Tensor, ""]
    """Frobenius norm of what the kept modes leave out (of the symmetric part, if symmetrised)."""
    symmetrized: bool
    small: Small
    """How small singular values were found: "bound" (Gram, with `output.bound`) or "qr"."""

    @property
    def singular_values(self) -> Float[Tensor, " k"]:
        """Of the output unfolding: Frobenius norms of the interaction matrices Q(u_k)."""
        return self.output.singular_values

    @property
    def output_modes(self) -> Float[Tensor, "k d_out"]:
        return self.output.modes

    @property
    def input_singular_values(self) -> Float[Tensor, " k_in"]:
        """Of the input unfolding, where both legs share it."""
        return self._inputs().singular_values

    @property
    def input_modes(self) -> Float[Tensor, "k_in d_in"]:
        return self._inputs().modes

    @property
    def core(self) -> BilinearTensor:
        """The tensor in coordinates of the modes, [k, k_in, k_in] if built; factored."""
        return BilinearTensor(
            left=self.left.modes @ self.tensor.left,
            right=self.right.modes @ self.tensor.right,
            out=self.output.modes @ self.tensor.out,
            shared_input=self.symmetrized,
        )

    def to_tensor(self) -> BilinearTensor:
        """The kept part, factored at the tensor's own rank.

        If symmetrised, its symmetric part is what was decomposed: the function is the same.
        """
        core = self.core
        return BilinearTensor(
            left=self.left.modes.T @ core.left,
            right=self.right.modes.T @ core.right,
            out=self.output.modes.T @ core.out,
            shared_input=self.symmetrized,
        )

    def truncate(self, k: int | None = None, k_in: InputCount = None) -> "HOSVD":
        """The k leading output modes and k_in leading input modes; None keeps those that are.

        Costs nothing for outputs alone; with fewer inputs, one inner product of the core.
        """
        output = self.output if k is None else self.output.truncate(k)
        left, right = _pair(k_in, self.symmetrized)
        cut_left = self.left if left is None else self.left.truncate(left, "k_in")
        cut_right = cut_left
        if not self.symmetrized:
            cut_right = self.right if right is None else self.right.truncate(right, "k_in")
        error = _error(self.tensor, output, cut_left, cut_right, self.symmetrized)
        return replace(
            self, output=output, left=cut_left, right=cut_right, error=error.to(self.error)
        )

    def eigendecompose(
        self, mode: int, k: int | None = None, *, gauge: Gauge = "none"
    ) -> Eigendecomposition:
        """Eigenmodes of the interaction matrix of one output mode; its norm is the singular value.

        Raises:
            ValueError: a mode that is not kept, or legs that read different spaces.
        """
        if not 0 <= mode < len(self.output_modes):
            raise ValueError(
                f"`mode` must be between 0 and {len(self.output_modes) - 1}, got {mode}"
            )
        self._inputs()
        tensor = self.to_tensor() if self.left.truncated else self.tensor
        return eigendecompose(tensor, self.output_modes[mode], k, gauge=gauge)

    def _inputs(self) -> ModeSpectrum:
        if not self.symmetrized:
            raise ValueError(
                "left and right inputs were decomposed apart, as different spaces: use `left` and "
                "`right`, and singular_decompose(tensor, output mode)"
            )
        return self.left


@torch.no_grad()
def hosvd(
    tensor: BilinearTensor,
    k: int | None = None,
    k_in: InputCount = None,
    *,
    small: Small = "bound",
    symmetrized: bool | None = None,
    dtype: torch.dtype = torch.float64,
) -> HOSVD:
    """HOSVD of all three modes by the Gram route: 10 rank^2 d operations and two eigenproblems.

    The Gram matrix squares singular values, so those below 1e-3 of the largest carry the error
    bound that the result states (`output.bound`, `left.bound`); `small="qr"` finds them to rounding
    at O(rank d^3 + d^4). Below d, the rank is the size of the eigenproblems. Not differentiable.

    Args:
        tensor: its symmetric part is decomposed where both legs read one input.
        k: output modes to keep; None keeps all.
        k_in: input modes to keep, one number or (left, right) for different spaces.
        small: how small singular values are treated, "bound" or "qr".
        symmetrized: False decomposes the tensor as it stands; that is the default where its legs
            read two inputs (`shared_input`).
        dtype: of the matrix products; float32 halves their time at the price of precision. Sums
            over blocks and eigenproblems are in float64 always.

    Raises:
        ValueError: rank 0, numbers that are not finite, `k` or `k_in` out of range, an unknown
            `small`, `symmetrized=True` for legs of two inputs, or a dtype that is neither
            float32 nor float64.
    """
    require_sound(tensor)
    symmetric = reads_one_space(tensor, symmetrized)
    tensor = replace(tensor, shared_input=symmetric)
    if small not in ("bound", "qr"):
        raise ValueError(f'`small` must be "bound" or "qr", got {small!r}')
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"`dtype` must be torch.float32 or torch.float64, got {dtype}")
    k_left, k_right = _pair(k_in, symmetric)
    compressed = compress(tensor.to(dtype), symmetric)
    output, left, right = _spectra(compressed, symmetric, small, (k, k_left, k_right))
    error = _error(tensor.to(dtype), output, left, right, symmetric)
    kind = tensor.out.dtype
    output, left = _cast(output, kind), _cast(left, kind)
    return HOSVD(
        tensor=tensor,
        output=output,
        left=left,
        right=left if symmetric else _cast(right, kind),
        error=error.to(kind),
        symmetrized=symmetric,
        small=small,
    )


def _spectra(
    compressed: Compressed, symmetric: bool, small: Small, counts: tuple[int | None, ...]
) -> list[ModeSpectrum]:
    core = compressed.core
    legs = ("out", "left") if symmetric else ("out", "left", "right")
    grams = mode_grams(core, symmetric) if small == "bound" else None
    found = []
    for leg, k in zip(legs, counts, strict=False):
        name = "k" if leg == "out" else "k_in"
        where = (core, leg, symmetric, getattr(compressed, leg), k, name)
        if grams is None:
            found.append(spectrum_from_qr(*where))
        else:
            found.append(spectrum_from_gram(getattr(grams, leg), *where))
    return found if len(found) == 3 else [*found, found[-1]]


def _error(
    tensor: BilinearTensor,
    output: ModeSpectrum,
    left: ModeSpectrum,
    right: ModeSpectrum,
    symmetric: bool,
) -> Float[Tensor, ""]:
    """Outputs left out, and what kept outputs lose with their inputs: orthogonal, so they add."""
    if not (left.truncated or right.truncated):
        return output.left_out
    dtype = tensor.out.dtype
    kept = tensor.contract_out(output.modes.to(dtype))
    rows, columns = left.modes.to(dtype), right.modes.to(dtype)
    core = replace(kept, left=rows @ kept.left, right=columns @ kept.right)
    if slices_are_cheap(kept):
        projected = replace(kept, left=rows.T @ core.left, right=columns.T @ core.right)
        lost = distance(kept, projected, symmetric) ** 2
    else:
        lost = output.singular_values.double().square().sum()
        lost = (lost - inner_product(core, core, symmetric)).clamp_min(0)
    return (output.left_out.double() ** 2 + lost).sqrt()


def _pair(k_in: InputCount, symmetric: bool) -> tuple[int | None, int | None]:
    if not isinstance(k_in, tuple):
        return k_in, k_in
    if symmetric and k_in[0] != k_in[1]:
        raise ValueError(f"`k_in` is one number where both legs read one space, got {k_in}")
    return k_in


def _cast(spectrum: ModeSpectrum, dtype: torch.dtype) -> ModeSpectrum:
    return replace(
        spectrum,
        singular_values=spectrum.singular_values.to(dtype),
        modes=spectrum.modes.to(dtype),
        left_out=spectrum.left_out.to(dtype),
        bound=None if spectrum.bound is None else spectrum.bound.to(dtype),
    )
