"""What an edit of one layer may be: features that are read, vectors that are written.

An edit adds to the layer's output y, at every position,

    dy = phi(x) theta W            theta [feature, writer], or a number per feature where they are
                                   paired (then feature k writes W[k])

which is linear in theta: of a margin m with gradient g = dm/dy the Jacobian is
sum_pos phi_pos (x) W g_pos. Features are linear in the MLP's hidden products (the edit is then a
change of W_out) or squares of what the MLP's input is projected on (eigenmodes).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LayerBasis:
    """Identities are not stored: readers or writers of None."""

    layer: int
    width: int
    """Of what is read: d_mlp, or d_model for squares."""
    d_out: int
    readers: Float[Tensor, "feature width"] | None = None
    writers: Float[Tensor, "writer d_out"] | None = None
    squares: bool = False
    """Features are (reader . x)^2 of the MLP's input x, not reader . h of its hidden products."""
    paired: bool = False

    @property
    def n_features(self) -> int:
        return self.width if self.readers is None else len(self.readers)

    @property
    def n_writers(self) -> int:
        return self.d_out if self.writers is None else len(self.writers)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of theta."""
        return (self.n_features,) if self.paired else (self.n_features, self.n_writers)

    def features(self, value: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch feature"]:
        read = value if self.readers is None else value @ self.readers.to(value).mT
        return read**2 if self.squares else read

    def readings(self, gradient: Float[Tensor, "*batch d_out"]) -> Float[Tensor, "*batch writer"]:
        """What the writers do to something whose gradient is given: W g."""
        return gradient if self.writers is None else gradient @ self.writers.to(gradient).mT

    def change(
        self, value: Float[Tensor, "*batch width"], theta: Float[Tensor, "..."]
    ) -> Float[Tensor, "*batch d_out"]:
        """dy for what the layer reads."""
        read, theta = self.features(value), theta.to(value)
        written = read * theta if self.paired else read @ theta
        return written if self.writers is None else written @ self.writers.to(written)

    def factors(
        self, theta: Float[Tensor, "..."]
    ) -> tuple[Float[Tensor, "term width"], Float[Tensor, "term d_out"]]:
        """Readers and writers with dy = sum_k phi_k(x) writer_k; as few as theta's shape shows."""
        eye = torch.eye(self.width).to(theta)
        readers = eye if self.readers is None else self.readers.to(theta)
        if self.paired:
            assert self.writers is not None
            return readers, theta[:, None] * self.writers.to(theta)
        if self.writers is not None and not self.squares and self.n_writers < self.n_features:
            return theta.mT @ readers, self.writers.to(theta)
        writers = theta if self.writers is None else theta @ self.writers.to(theta)
        return readers, writers


@dataclass(frozen=True, eq=False)
class LayerGradients:
    """What a layer read in some rows, and how margins at sites of these rows change with y."""

    values: Float[Tensor, "row pos width"]
    gradients: Float[Tensor, "site pos d_out"]
    site_row: Int[Tensor, " site"]


@dataclass(frozen=True, eq=False)
class WhitenedBasis:
    """A basis in coordinates in which |coordinates|^2 / 2 is what an edit costs.

    The cost is the second-order change of the distribution on general text, in Kronecker-factored
    form (K-FAC, 1503.05671, section 3): A = E[phi phi^T] and G = E[W g g^T W^T] give the metric
    A (x) G, or A * G entry by entry for paired features.
    """

    basis: LayerBasis
    into_features: Float[Tensor, "feature feature"]
    """phi @ into has unit second moment; the whole metric's where features are paired."""
    into_writers: Float[Tensor, "writer writer"] | None

    def theta(self, coordinates: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if self.into_writers is None:
            return self.into_features @ coordinates
        return self.into_features @ coordinates @ self.into_writers.mT

    def factors(
        self, left: Float[Tensor, "feature term"], right: Float[Tensor, "term writer"]
    ) -> tuple[Float[Tensor, "term width"], Float[Tensor, "term d_out"]]:
        """Readers and writers of the edit whose coordinates are left @ right, unpaired."""
        assert self.into_writers is not None, "paired features have no factors"
        basis = self.basis
        readers, writers = (self.into_features @ left).mT, right @ self.into_writers.mT
        if basis.readers is not None:
            readers = readers @ basis.readers.to(readers)
        return readers, writers if basis.writers is None else writers @ basis.writers.to(writers)

    def read(self, found: LayerGradients) -> "WhitenedGradients":
        """Features and writers' readings of a pass, in the whitened coordinates."""
        features = self.basis.features(found.values)
        readings = self.basis.readings(found.gradients)
        if self.into_writers is not None:
            features = features @ self.into_features.to(features)
            readings = readings @ self.into_writers.to(readings)
        return WhitenedGradients(self, features, readings, found.site_row)


@dataclass(frozen=True, eq=False)
class WhitenedGradients:
    """A layer's Jacobian in whitened coordinates, kept as its two factors per position."""

    whitened: WhitenedBasis
    features: Float[Tensor, "row pos feature"]
    readings: Float[Tensor, "site pos writer"]
    site_row: Int[Tensor, " site"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whitened.basis.shape

    def dense(self) -> Float[Tensor, "site parameter"]:
        """One row per site. O(sites * parameters)."""
        features = self.features[self.site_row]
        if self.whitened.into_writers is None:
            rows = (features * self.readings).sum(1)
            return rows @ self.whitened.into_features.to(rows)
        return torch.einsum("spf,spw->sfw", features, self.readings).flatten(1)

    def kernel(self) -> Float[Tensor, "site site"]:
        """J J^T, by whichever route costs less: the dense rows, or position by position.

        sum_pq (phi_ap . phi_bq)(psi_ap . psi_bq) needs no parameter: O((sites pos)^2) instead of
        O(sites^2 parameters).
        """
        sites, pos = self.readings.shape[:2]
        parameters = self.features.shape[-1] * self.readings.shape[-1]
        if self.whitened.into_writers is None or parameters <= pos**2 * self.readings.shape[-1]:
            rows = self.dense()
            return rows @ rows.mT
        return self.kernel_by_positions()

    def kernel_by_positions(self) -> Float[Tensor, "site site"]:
        """The second of the two routes of `kernel`, a site at a time in memory."""
        features = self.features[self.site_row]
        flat_features, flat_readings = features.flatten(0, 1), self.readings.flatten(0, 1)
        sites, pos = self.readings.shape[:2]
        rows = []
        for one, psi in zip(features, self.readings, strict=True):
            products = (one @ flat_features.mT) * (psi @ flat_readings.mT)
            rows.append(products.sum(0).view(sites, pos).sum(1))
        return torch.stack(rows)

    def pull_back(self, weights: Float[Tensor, " site"]) -> Float[Tensor, "..."]:
        """J^T weights, shaped as the coordinates; without J."""
        features, readings = self.features[self.site_row], self.readings
        readings = readings * weights.to(readings)[:, None, None]
        if self.whitened.into_writers is None:
            return (features * readings).sum((0, 1)) @ self.whitened.into_features.to(features)
        return features.flatten(0, 1).mT @ readings.flatten(0, 1)

    def push(self, coordinates: Float[Tensor, "..."]) -> Float[Tensor, " site"]:
        """J coordinates: the linear prediction of the margins' change; without J."""
        coordinates = coordinates.to(self.features)
        if self.whitened.into_writers is None:
            into = self.whitened.into_features.to(coordinates)
            moved = (into @ coordinates) * self.features[self.site_row]
        else:
            moved = (self.features @ coordinates)[self.site_row]
        return (moved * self.readings).sum((1, 2))


def whiten(
    basis: LayerBasis,
    features: Float[Tensor, "feature feature"],
    readings: Float[Tensor, "writer writer"],
    damping: float,
) -> WhitenedBasis:
    """The basis in the metric of two second moments.

    Args:
        features, readings: E[phi phi^T] and E[W g g^T W^T] over general text.
        damping: added to each factor, in units of its mean eigenvalue.
    """
    if basis.paired:
        return WhitenedBasis(basis, _inverse_root(features * readings, damping), None)
    return WhitenedBasis(basis, _inverse_root(features, damping), _inverse_root(readings, damping))


def _inverse_root(moment: Tensor, damping: float) -> Tensor:
    """L^-T of the damped moment's Cholesky factor: x @ it has the identity as its moment."""
    size = len(moment)
    scale = (moment.trace() / size).clamp_min(torch.finfo(torch.float64).tiny)
    damped = moment.double() + damping * scale * torch.eye(size).to(moment.double())
    root = torch.linalg.cholesky(damped)
    return torch.linalg.solve_triangular(root.mT, torch.eye(size).to(root), upper=True)
