"""Shared bases of directions: of what an MLP reads, or of what it writes.

Input directions v_i with duals d_i (x = sum_i v_i (d_i . x), as far as they span it) take the
left and the right of Q(u) apart alike: M_i = (d_i v_i^T Q + Q v_i d_i^T) / 2. Output directions
w_i with duals d_i (y = sum_i w_i (d_i . y)) give M_i = (u . w_i) Q(d_i). What they do not span
stays in the remainder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_bilinear.circuits.bases.basis import AbstractBasis, Chosen, Elements, Site, halves
from tl_bilinear.circuits.parts import AbstractParts, InputParts, OutputParts
from tl_bilinear.decompositions import Mode, hosvd
from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.tensor import BilinearTensor


@dataclass(frozen=True, eq=False)
class _Directions(AbstractBasis):
    rows: Mapping[int, Float[Tensor, "element d_model"]]
    """Directions per layer, in float64; they need not be orthogonal."""
    name: str
    _duals: dict[int, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self):
        for layer, rows in self.rows.items():
            if rows.ndim != 2 or not len(rows) or not torch.isfinite(rows).all():
                raise ValueError(
                    f"layer {layer}: a basis of directions is a finite matrix [element, d_model], "
                    f"got shape {list(rows.shape)}"
                )

    def of(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's directions and duals."""
        if layer not in self.rows:
            raise ValueError(
                f"the basis {self.name!r} has no directions for layer {layer}: combine it with "
                "another by PerLayer"
            )
        rows = self.rows[layer].to(like)
        if layer not in self._duals:
            self._duals[layer] = torch.linalg.pinv(rows).T
        return rows, self._duals[layer]


@final
@dataclass(frozen=True, eq=False)
class InputDirections(_Directions):
    """Directions of the normalised stream that the MLPs read."""

    def elements(self, sites: Sequence[Site]) -> list[Elements]:
        """All directions at each site of one layer. O((n + rank) d) per site."""
        rows, duals = self.of(sites[0].layer, sites[0].mid)
        return [_Inputs(site, rows, duals) for site in sites]

    def parts(
        self, tensor: BilinearTensor, layer: int, index: tuple[int, ...], modes: Sequence[Mode]
    ) -> AbstractParts:
        """Input directions."""
        return InputParts(tensor, index, *self.of(layer, tensor.out))


@final
@dataclass(frozen=True, eq=False)
class OutputDirections(_Directions):
    """Directions of what the MLPs give (`mlp_out_site`)."""

    def elements(self, sites: Sequence[Site]) -> list[Elements]:
        """All directions at each site of one layer. O((n + rank) d) per site."""
        rows, duals = self.of(sites[0].layer, sites[0].mid)
        return [_Outputs(site, rows, duals) for site in sites]

    def parts(
        self, tensor: BilinearTensor, layer: int, index: tuple[int, ...], modes: Sequence[Mode]
    ) -> AbstractParts:
        """Output directions."""
        return OutputParts(tensor, index, *self.of(layer, tensor.out))


class _Inputs(Elements):
    def __init__(self, site: Site, rows: Tensor, duals: Tensor):
        self.site, self.rows, self.duals, u = site, rows, duals, site.u
        self.mixed = rows @ site.back(u, site.mid)
        first = (duals @ site.end) * self.mixed
        self.shares = (first + (duals @ site.mid) * (rows @ site.back(u, site.end))) / 2

    def choose(self, index: Int[Tensor, " chosen"]) -> Chosen:
        site, rows, duals = self.site, self.rows[index], self.duals[index]
        ways = self.mixed[index][:, None] * duals
        ways = ways + (duals @ site.mid)[:, None] * site.back(site.u, rows)
        return Chosen(
            flows=halves(site, rows, duals),
            directions=ways / 2,
            constants=None,
            labels=tuple(f"direction {i}" for i in index.tolist()),
            details=_activations(duals @ site.end),
        )


class _Outputs(Elements):
    def __init__(self, site: Site, rows: Tensor, duals: Tensor):
        self.site, self.rows, self.duals = site, rows, duals
        self.written = (duals @ site.map.tensor.out) @ site.products()
        self.shares = (rows @ site.u) * self.written

    def choose(self, index: Int[Tensor, " chosen"]) -> Chosen:
        site, weights = self.site, self.site.readers @ self.rows[index].T
        ways = site.back(self.duals[index], site.mid)
        return Chosen(
            flows=weights * self.written[index],
            directions=weights.sum(0)[:, None] * ways,
            constants=None,
            labels=tuple(f"direction {i}" for i in index.tolist()),
            details=_activations(self.written[index]),
        )


def _activations(values: Tensor) -> tuple[dict[str, Any], ...]:
    return tuple({"activation": value} for value in values.tolist())


def random_directions(host: AbstractHost, seed: int = 0) -> InputDirections:
    """An orthogonal basis of every layer's input, drawn uniformly."""
    generator = torch.Generator().manual_seed(seed)
    d = host.d_model
    rows = {}
    for layer in range(host.n_layers):
        drawn = torch.randn(d, d, generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(drawn)
        rows[layer] = q.T * r.diagonal().sign()[:, None]
    return InputDirections(rows, "random")


def written_directions(host: AbstractHost) -> OutputDirections:
    """The left singular vectors of every layer's W_out^T."""
    layers = range(host.n_layers)
    out = {i: host.folded_mlp_weights(i).tensor.out.double() for i in layers}
    rows = {i: torch.linalg.svd(o, full_matrices=False).U.T for i, o in out.items()}
    return OutputDirections(rows, "w_out")


def hosvd_directions(host: AbstractHost) -> OutputDirections:
    """The output modes of every layer's tensor (`hosvd`): the output factor of its Tucker form."""
    layers = range(host.n_layers)
    rows = {i: hosvd(host.mlp_tensor(i).to(torch.float64)).output_modes for i in layers}
    return OutputDirections(rows, "hosvd")


def tucker_directions(host: AbstractHost) -> InputDirections:
    """The input modes of every layer's tensor (`hosvd`): its Tucker form's shared input factor."""
    layers = range(host.n_layers)
    rows = {i: hosvd(host.mlp_tensor(i).to(torch.float64)).input_modes for i in layers}
    return InputDirections(rows, "tucker")
