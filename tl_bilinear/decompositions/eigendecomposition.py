"""The result of `eigendecompose`: eigenpairs of Q(u), and what they leave out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_bilinear.decompositions import spectrum
from tl_bilinear.decompositions.spectrum import Subspace
from tl_bilinear.tensor import BilinearTensor

Gauge = Literal["none", "traceless"]


@dataclass(frozen=True, eq=False)
class Eigendecomposition:
    """Eigenpairs of Q(u), for one direction or a batch of them."""

    eigenvalues: Float[Tensor, "*batch k"]
    eigenvectors: Float[Tensor, "*batch k d_in"]
    """Orthonormal rows."""
    direction: Float[Tensor, "*batch d_out"]
    gauge: Gauge
    trace_shift: Float[Tensor, "*batch"]
    """a, the multiple of the identity that the gauge took out of Q; zero without a gauge."""
    residuals: Float[Tensor, "*batch k"]
    """|Q v - lambda v| per pair: Q has an eigenvalue within it of lambda. Computed where the
    Krylov method found the pair; for eigh LAPACK's backward error, d_in eps |lambda_1|. Of the
    pairs before they were rounded to the tensor's dtype."""
    by_eigh: Bool[Tensor, "*batch"]
    """Whether all of a direction's eigenvalues were computed, and none can be missing."""
    method: str
    """How the pairs were found, and why where it is not what was asked for."""
    left_out: Callable[[], Float[Tensor, "*batch"]]
    """The squared Frobenius norm of what the kept pairs leave out, computed when called."""

    @cached_property
    def error(self) -> Float[Tensor, "*batch"]:
        """Frobenius norm of what the kept pairs leave out; 0 where all are kept.

        Exact. After the Krylov method, which never sees the whole of Q, the first look computes
        it: O(rank d^2) per direction, or O(rank^2 d) once where there are many.
        """
        return self.left_out().sqrt().to(self.eigenvalues.dtype)

    @property
    def norm(self) -> Float[Tensor, "*batch"]:
        """Frobenius norm of the whole decomposed matrix, kept pairs or not."""
        return (self.error**2 + self.eigenvalues.square().sum(-1)).sqrt()

    @property
    def certified(self) -> Bool[Tensor, "*batch"]:
        """Whether no eigenvalue above the smallest kept |lambda| can be missing.

        Residuals cannot show it. It is shown where all eigenvalues were computed, or where what is
        left out has a norm below the smallest kept |lambda| (the k + 1st |lambda| is at most that
        norm). On a spectrum with a heavy bulk neither holds, and False is no sign of an error.
        """
        return self.by_eigh | (self.error < self.eigenvalues[..., -1].abs())

    def activations(self, x: Float[Tensor, "*points d_in"]) -> Float[Tensor, "*points k"]:
        """v_k . x for every kept pair; for a single direction."""
        self._require_single("activations")
        return x @ self.eigenvectors.mT

    def contributions(self, x: Float[Tensor, "*points d_in"]) -> Float[Tensor, "*points k"]:
        """lambda_k (v_k . x)^2 for every kept pair; for a single direction."""
        return self.eigenvalues * self.activations(x) ** 2

    def truncate(self, k: int) -> "Eigendecomposition":
        """The k pairs of largest |lambda|."""
        kept = self.eigenvalues.shape[-1]
        if not 1 <= k <= kept:
            raise ValueError(f"`k` must be between 1 and the {kept} pairs kept here, got {k}")
        cut = self.eigenvalues[..., k:].double().square().sum(-1)
        return replace(
            self,
            eigenvalues=self.eigenvalues[..., :k],
            eigenvectors=self.eigenvectors[..., :k, :],
            residuals=self.residuals[..., :k],
            left_out=lambda: self.left_out() + cut,
        )

    def to_tensor(self) -> BilinearTensor:
        """The kept part as a tensor with one output, u . B(x), the gauge's part put back."""
        self._require_single("to_tensor")
        legs, weights = self.eigenvectors.mT, self.eigenvalues
        if self.gauge == "traceless":
            identity = torch.eye(legs.shape[0], dtype=legs.dtype, device=legs.device)
            legs = torch.cat([legs, identity], dim=1)
            weights = torch.cat([weights, self.trace_shift.expand(identity.shape[0])])
        return BilinearTensor(left=legs, right=legs, out=weights[None])

    def truncation_curve(self) -> Float[Tensor, "*batch k"]:
        """Share of |Q|_F^2 that the first 1, 2, ..., k pairs hold."""
        return spectrum.truncation_curve(self.eigenvalues, self.norm**2)

    def effective_rank(self) -> Float[Tensor, "*batch"]:
        """(L1 / L2)^2 of the whole spectrum (2410.08417), 1 to d_in."""
        self._require_all("effective_rank")
        return spectrum.effective_rank(self.eigenvalues)

    def kurtosis(self) -> Float[Tensor, "*batch"]:
        """Pearson's kurtosis of the whole spectrum: 2 for a random Q, more with few large modes."""
        self._require_all("kurtosis")
        return spectrum.kurtosis(self.eigenvalues)

    def outliers(self) -> Int[Tensor, "*batch"]:
        """How many kept |lambda| stick out of a semicircle of the norm that is left (Wigner).

        The first so many pairs are the outliers. Where all kept ones are, there may be more.
        """
        d_in = self.eigenvectors.shape[-1]
        return spectrum.outliers(self.eigenvalues, self.norm**2, d_in)

    def degenerate_groups(self, rtol: float = 1e-6) -> tuple[tuple[int, ...], ...]:
        """Indices of kept pairs whose eigenvalues agree within `rtol` of the largest.

        The vectors inside such a group are arbitrary: only the subspace means something.
        """
        self._require_single("degenerate_groups")
        values = self.eigenvalues.detach()
        scale = float(values.abs().max()) if len(values) else 0.0
        return spectrum.degenerate_groups(values, rtol, scale)

    def subspaces(self, rtol: float = 1e-6) -> tuple[Subspace, ...]:
        """The degenerate groups as subspaces, which are what an eigensolver determines."""
        groups = self.degenerate_groups(rtol)
        if not groups:
            return ()
        values = self.eigenvalues.detach()
        k, d_in = self.eigenvectors.shape
        reach = float(values[-1].abs()) + rtol * float(values[0].abs())
        return tuple(
            Subspace(
                eigenvalue=float(values[list(group)].mean()),
                indices=group,
                basis=self.eigenvectors[list(group)],
                whole=k == d_in or float(values[list(group)].abs().min()) > reach,
            )
            for group in groups
        )

    def _require_single(self, what: str) -> None:
        if self.eigenvalues.ndim != 1:
            raise ValueError(
                f"`{what}` is for a single direction; this result holds a batch of shape "
                f"{tuple(self.eigenvalues.shape[:-1])}: decompose one direction"
            )

    def _require_all(self, what: str) -> None:
        k, d_in = self.eigenvectors.shape[-2:]
        if k != d_in:
            raise ValueError(
                f"`{what}` is of a whole spectrum, and {k} of {d_in} pairs are kept here: "
                "decompose with k=None"
            )
