"""How an MLP makes output features out of pairs of input features, from its weights.

With input features d_i (decoder rows: x ~ sum_i z_i d_i + b_dec) and an output feature's
direction u,

    u . MLP(x) = sum_i I[i, i] z_i^2 + 2 sum_{i<j} I[i, j] z_i z_j + linear . z + constant

with I[i, j] = d_i^T Q(u) d_j (2410.08417 section 3.1). The linear part comes from b_dec and the
MLP's biases. Features of the raw stream are divided by the norm's denominator rho first: their
interactions are those of `rho = 1`, and 1/rho^2 of that act.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_bilinear.decompositions.eigen import Gauge
from tl_bilinear.decompositions.interaction_table import (
    BLOCK,
    InteractionTable,
    interaction_table,
    random_tables,
)
from tl_bilinear.dictionary import Dictionary, Side
from tl_bilinear.features.correlation import (
    RANKS,
    FeatureCorrelations,
    correlate_eigenvectors,
)
from tl_bilinear.features.side import Features, choose, place_input, place_output
from tl_bilinear.hosts import get_host
from tl_bilinear.hosts.feature_site import InputSite
from tl_bilinear.hosts.provenance import Provenance, provenance


@dataclass(frozen=True, eq=False)
class Interactions:
    """Interactions of all pairs of n input features, per output feature."""

    layer: int
    features: tuple[int, ...]
    """The output features, by their index."""
    in_hook: str
    """What the input features are directions of."""
    out_hook: str
    readout: Literal["encoder", "decoder", "given"]
    """What u is on the output side: a dictionary's encoder column, its decoder row, or the
    direction that was given."""
    in_labels: tuple[str, ...]
    out_labels: tuple[str, ...]
    tables: tuple[InteractionTable, ...]
    """Per output feature: statistics of all pairs, and the largest."""
    baseline: tuple[tuple[InteractionTable, ...], ...]
    """Per output feature and draw: the same for Q's eigenvalues with random eigenvectors."""
    linear: Float[Tensor, "feature n"] | None
    """None where the input features live before a norm: its parts have other denominators."""
    constant: Float[Tensor, " feature"] | None
    correlations: FeatureCorrelations | None
    """Of the eigenvectors with the feature's activation, where texts were given."""
    provenance: Provenance

    @property
    def self_interactions(self) -> Float[Tensor, "feature n"]:
        """I[i, i] of every input feature."""
        return torch.stack([table.self_values for table in self.tables])

    @property
    def cross_pairs(self) -> Int[Tensor, "feature k 2"]:
        """The kept pairs i < j, by falling |I[i, j]|."""
        return torch.stack([table.cross_pairs for table in self.tables])

    @property
    def cross_interactions(self) -> Float[Tensor, "feature k"]:
        """I[i, j] of the kept pairs; each adds 2 I[i, j] z_i z_j."""
        return torch.stack([table.cross_values for table in self.tables])

    def table(self, feature: int) -> InteractionTable:
        """The table of one output feature.

        Raises:
            ValueError: a feature that was not asked for.
        """
        if feature not in self.features:
            raise ValueError(f"output feature {feature} is not among {list(self.features)[:8]}")
        return self.tables[self.features.index(feature)]

    def top(self, k: int, feature: int | None = None) -> tuple[tuple[str, str, str, float], ...]:
        """The k largest kept interactions: (output label, input label, input label, I[i, j]).

        Of one output feature, or of all together.
        """
        chosen = self.features if feature is None else (feature,)
        rows = []
        for c in chosen:
            label = self.out_labels[self.features.index(c)] if c in self.features else ""
            for i, j, value in self.table(c).top(k):
                rows.append((label, self.in_labels[i], self.in_labels[j], value))
        return tuple(sorted(rows, key=lambda row: -abs(row[3]))[:k])


def interactions(
    model: Any,
    layer: int,
    in_features: Features,
    out_features: Features,
    features: Sequence[int] | None = None,
    *,
    readout: Side = "encoder",
    k: int = 32,
    texts: Iterable[str] | None = None,
    ranks: Sequence[int] = RANKS,
    draws: int = 3,
    seed: int = 0,
    gauge: Gauge = "none",
    in_labels: Sequence[str] | None = None,
    block: int = BLOCK,
) -> Interactions:
    """The interactions of all pairs of input features for chosen output features.

    Args:
        in_features: a dictionary of the MLP's input (`ln2.hook_normalized`, `mlp.hook_in` or
            `hook_resid_mid` of this layer), or directions [n, d_model] of what
            `get_host(model).mlp_map(layer)` reads.
        out_features: a dictionary of the MLP's output (`hook_mlp_out`, `mlp.hook_out` or
            `hook_resid_post` of this layer), or directions [n, d_model] read there.
        features: which output features; all of them where it is None.
        readout: "encoder" reads an output feature along its encoder column (what makes it
            fire), "decoder" along its decoder row. Directions are read as given.
        k: how many self and how many cross interactions are kept per output feature.
        texts: also measure how well the top eigenvectors of Q(u) follow the output feature's
            activation on these texts (`correlate_eigenvectors`, with `ranks`).
        draws: matrices of the matched random baseline per output feature (`random_tables`,
            from `seed`); 0 leaves it out.
        gauge: "none" or "traceless" (see `eigendecompose`).
        in_labels: names of the input features; their indices where it is None.

    Cost: O(n d^2 + n^2 d / 2) per output feature, times 1 + draws; memory O(n d).

    Raises:
        ValueError: a dictionary of another width, layer or place; unknown output features; k
            beyond the number of pairs; labels of another length; numbers that are not finite.
    """
    host = get_host(model)
    place, inputs = place_input(host, layer, in_features)
    out_place, outputs = place_output(host, layer, out_features, readout)
    chosen = choose(features, len(outputs))
    labels = [str(i) for i in range(len(inputs))] if in_labels is None else list(in_labels)
    if len(labels) != len(inputs):
        raise ValueError(f"`in_labels` has {len(labels)} names for {len(inputs)} input features")
    if draws < 0:
        raise ValueError(f"`draws` must not be below 0, got {draws}")
    dtype = torch.promote_types(place.weights.tensor.out.dtype, torch.float32)
    tensor = place.weights.to(dtype).tensor
    inputs = inputs.to(host.device, dtype)
    directions = out_place.fold(outputs[list(chosen)].to(host.device, dtype))
    tables, baseline = [], []
    for row, u in enumerate(tqdm(directions, desc="interactions", delay=2, leave=False)):
        tables.append(interaction_table(tensor, u, inputs, k, gauge=gauge, block=block))
        options = {"draws": draws, "seed": seed * 1_000_003 + chosen[row]}
        found = random_tables(tensor, u, inputs, k, **options, gauge=gauge, block=block)
        baseline.append(found)
    linear, constant = _linear_part(place, in_features, inputs, directions)
    correlations = None
    if texts is not None:
        correlations = correlate_eigenvectors(
            host, layer, out_features, texts, chosen, readout=readout, ranks=ranks, gauge=gauge
        )
    return Interactions(
        layer=layer,
        features=chosen,
        in_hook=place.hook,
        out_hook=out_place.hook,
        readout=readout if isinstance(out_features, Dictionary) else "given",
        in_labels=tuple(labels),
        out_labels=tuple(str(c) for c in chosen),
        tables=tuple(tables),
        baseline=tuple(baseline),
        linear=linear,
        constant=constant,
        correlations=correlations,
        provenance=provenance(host, (*place.frozen, *out_place.frozen), gauge),
    )


def _linear_part(
    place: InputSite, in_features: Features, inputs: Tensor, directions: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """What is linear in z and what is constant, of u . MLP(sum_i z_i d_i + b_dec)."""
    if place.frozen:
        return None, None
    weights = place.weights.to(torch.float64)
    u, d = directions.double(), inputs.double()
    base = torch.zeros_like(d[0])
    if isinstance(in_features, Dictionary):
        base = in_features.decoder_bias.to(d)
    left, right = base @ weights.tensor.left, base @ weights.tensor.right
    left, right = left + weights.left_bias, right + weights.right_bias
    slope = (d @ weights.tensor.left) * right + (d @ weights.tensor.right) * left
    linear = (u @ weights.tensor.out) @ slope.T
    return linear.to(inputs), (weights(base) @ u.T).to(inputs)
