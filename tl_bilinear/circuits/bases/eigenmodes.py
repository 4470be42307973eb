"""Eigenmodes of the accumulated direction: at every site a basis of its own.

Q(u) = sum_k lambda_k v_k v_k^T, and mode k's share is lambda_k (v_k . end)(v_k . mid): on one
prompt lambda_k (v_k . x)^2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_bilinear.circuits.bases.basis import AbstractBasis, Chosen, Elements, Site, halves
from tl_bilinear.circuits.parts import AbstractParts, ModeParts
from tl_bilinear.decompositions import Mode, eigendecompose
from tl_bilinear.tensor import BilinearTensor

CHUNK_NUMBERS = 2**24
"""Entries of the matrices that are decomposed together."""


@final
@dataclass(frozen=True, eq=False)
class Eigenmodes(AbstractBasis):
    """Eigenvectors of Q(u), by |eigenvalue|. An eigh of d_model^2 per site."""

    name: str = "eigenmodes"

    def elements(self, sites: Sequence[Site]) -> list[Elements]:
        """All eigenpairs at each site; sites of one map are decomposed together."""
        found: list[Elements] = []
        if all(site.map is sites[0].map for site in sites):
            step = max(1, CHUNK_NUMBERS // sites[0].map.d_in ** 2)
            for start in range(0, len(sites), step):
                part = sites[start : start + step]
                u = torch.stack([site.u for site in part])
                eigen = eigendecompose(part[0].map.tensor, u)
                found += map(_Modes, part, eigen.eigenvalues, eigen.eigenvectors)
            return found
        for site in sites:
            eigen = eigendecompose(site.map.tensor, site.u)
            found.append(_Modes(site, eigen.eigenvalues, eigen.eigenvectors))
        return found

    def bound(self, site: Site) -> float:
        """|lambda_k (v_k . mid)(v_k . end)| is at most |Q mid| |end|, and |Q end| |mid|."""
        u = site.u
        first = site.back(u, site.mid).norm() * site.end.norm()
        return float(torch.minimum(first, site.back(u, site.end).norm() * site.mid.norm()))

    def parts(
        self, tensor: BilinearTensor, layer: int, index: tuple[int, ...], modes: Sequence[Mode]
    ) -> AbstractParts:
        """Modes, each along its own direction."""
        return ModeParts.of(modes)


class _Modes(Elements):
    def __init__(
        self,
        site: Site,
        eigenvalues: Float[Tensor, " k"],
        eigenvectors: Float[Tensor, "k d_model"],
    ):
        self.site, self.eigenvalues, self.eigenvectors = site, eigenvalues, eigenvectors
        self.activations = eigenvectors @ site.end
        self.middles = eigenvectors @ site.mid
        self.shares = eigenvalues * self.activations * self.middles

    def choose(self, index: Int[Tensor, " chosen"]) -> Chosen:
        values, vectors = self.eigenvalues[index], self.eigenvectors[index]
        ends = self.activations[index].tolist()
        details: list[dict[str, Any]] = [
            {"eigenvalue": value, "activation": end}
            for value, end in zip(values.tolist(), ends, strict=True)
        ]
        return Chosen(
            flows=halves(self.site, vectors, vectors),
            directions=(values * self.middles[index])[:, None] * vectors,
            constants=None,
            labels=tuple(f"λ={value:+.3g}" for value in values.tolist()),
            details=tuple(details),
            modes=tuple(
                Mode(self.site.layer, self.site.u, value, vector)
                for value, vector in zip(values.tolist(), vectors, strict=True)
            ),
        )
