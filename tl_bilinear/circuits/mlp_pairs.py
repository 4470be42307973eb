"""One MLP's share of a target as an exact sum over pairs of sources of the stream.

An MLP reads m / rho with m = sum_s x_s (sources: embedding, position, every head, every earlier
MLP, biases). Its inner biases are one more source, the constant, which rho does not divide. With w
the target's direction on the rank axis (u . out / scale, times a frozen gate's slopes),

    u . MLP(m / rho) = sum_{s,t} T[s, t],    T[s, t] = sum_r w_r l_s[r] r_t[r], symmetrised

where l_s = left^T x_s / rho and r_t likewise: two thin products for all pairs (DESIGN 2.3;
2305.03452's terms "direct x direct", "direct x head", ... at any depth).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_bilinear.circuits.pair_rows import pair_rows, table_text
from tl_bilinear.frozen_map import FrozenMap
from tl_bilinear.hosts import get_host
from tl_bilinear.hosts.attention import mlp_scale_site
from tl_bilinear.hosts.checked_map import checked_mlp_map
from tl_bilinear.hosts.prompts import Text
from tl_bilinear.hosts.provenance import Provenance, provenance
from tl_bilinear.hosts.reading import Positions, take_reading, target_values
from tl_bilinear.hosts.sources import (
    CONSTANT,
    Source,
    source_hooks,
    source_index,
    source_values,
    stream_sources,
)
from tl_bilinear.hosts.target import Target
from tl_bilinear.hosts.writing import frozen_maps, frozen_slopes, mlp_writing, writing_hooks
from tl_bilinear.quadratic_map import QuadraticMap


@dataclass(frozen=True, eq=False)
class SourcePairs:
    """Shares of a target, in logits, by pairs of sources; a site is where the target is read.

    `table` is symmetric and sums to the MLP's direct effect on the target: an unordered pair has
    twice its entry (`pair`). The pairs with the constant are the MLP's linear part, the constant
    with itself its constant.
    """

    layer: int
    sites: tuple[str, ...]
    positions: Int[Tensor, "batch site"]
    sources: tuple[Source, ...]
    """The rows and columns; the constant is the last."""
    table: Float[Tensor, "batch site source source"]
    share: Float[Tensor, "batch site"]
    """The MLP's whole share, from the model's own MLP output."""
    target: Float[Tensor, "batch site"]
    """The model's own value of the target, from its logits."""
    provenance: Provenance

    @property
    def discrepancy(self) -> Float[Tensor, "batch site"]:
        """The MLP's share minus the sum of all pairs: rounding error, or something is wrong."""
        return self.share - self.table.sum((-2, -1))

    @property
    def by_source(self) -> Float[Tensor, "batch site source"]:
        """Each source's part under the equal split (the half rule): the table's row sums."""
        return self.table.sum(-1)

    def index(self, source: Source | str) -> int:
        """The row of a source, given itself or its name (such as "L0H3").

        Raises:
            ValueError: a source that the table does not have.
        """
        return source_index(self.sources, source)

    def pair(self, first: Source | str, second: Source | str) -> Float[Tensor, "batch site"]:
        """What an unordered pair adds to the target; a source with itself counts once."""
        i, j = self.index(first), self.index(second)
        return self.table[..., i, j] * (1 if i == j else 2)

    def top(
        self, k: int, batch: int = 0, site: int = 0
    ) -> tuple[tuple[Source, Source, float], ...]:
        """The k unordered pairs of largest |share| at one place, with the share."""
        rows = pair_rows(self.table[batch, site], k, symmetric=True)
        return tuple((self.sources[i], self.sources[j], value) for i, j, value in rows)

    def __str__(self) -> str:
        title = f"MLP {self.layer}: {float(self.share[0, 0]):+.3f} logits of {self.sites[0]}"
        return table_text(title, self.top(10), float(self.share[0, 0]))


def source_pairs(
    model: Any, text: Text | Any, layer: int, target: Target, *, positions: Positions = "last"
) -> SourcePairs:
    """One MLP's share of a target by pairs of sources, in float64; at any depth.

    A direct effect: the final norm's denominator is frozen, and what the MLP does through later
    layers is not in it.

    Args:
        model: a HookedTransformer, a TransformerBridge or a host; a gated one only if it was
            loaded with frozen_gates=True.
        text: a text, several texts, token ids [pos] or [batch, pos], or an ActivationCache.
        target: a string, a token id, a pair (first minus second) or a direction [d_model].
        positions: "last" reads where each prompt ends, "all" at every position.

    Cost: one forward pass per appended string of tokens, and O(S * rank * d_model) per site for
    two thin products of S sources, then O(S^2 * rank): no MLP is called per pair. Memory
    O(sites * S * rank), one prompt at a time.

    Raises:
        NotBilinearError: an MLP whose output its weights do not reproduce.
        ValueError: bad prompts, target, layer or positions; a model whose stream is no sum.
    """
    host = get_host(model)
    sources = stream_sources(host, layer)
    scale = mlp_scale_site(host, layer)
    hooks = [host.mlp_input_site(layer), host.mlp_out_site(layer), *writing_hooks(host, layer)]
    hooks += [*source_hooks(host, layer), *([scale] if scale else [])]
    reading = take_reading(host, text, target, hooks, positions)
    x = reading.values[host.mlp_input_site(layer)]
    written = reading.values[host.mlp_out_site(layer)]
    weights = checked_mlp_map(host, layer, x, written)
    writing = mlp_writing(host, reading, layer)
    inputs = source_values(host, sources, reading.values)
    rho = torch.ones_like(x[..., :1]) if scale is None else reading.values[scale]
    inputs = inputs / rho[..., None]
    u = writing.direction / writing.scale[..., None]
    tables = []
    for row in range(len(x)):  # one prompt at a time, for memory
        at_row = weights
        if isinstance(weights, FrozenMap):
            at_row = FrozenMap(weights.weights, weights.slope[row])
        tables.append(pair_table(at_row, inputs[row], u[row]))
    table = torch.stack(tables)
    table[..., -1, -1] += writing.offset
    share = (written * writing.direction).sum(-1) / writing.scale + writing.offset
    frozen = (*frozen_maps(host), *frozen_slopes(host, [layer]), "attention patterns")
    if scale is not None:
        frozen = (*frozen, f"denominator of layer {layer}'s norm")
    return SourcePairs(
        layer=layer,
        sites=reading.labels(),
        positions=reading.positions,
        sources=(*sources, CONSTANT),
        table=table,
        share=share,
        target=target_values(host, reading),
        provenance=provenance(host, frozen, "none"),
    )


def pair_table(
    weights: QuadraticMap | FrozenMap,
    inputs: Float[Tensor, "*batch source d_in"],
    u: Float[Tensor, "*batch d_out"],
) -> Float[Tensor, "*batch sources sources"]:
    """u . f(sum of inputs) by pairs of inputs, the layer's own biases as one input more.

    Symmetric; sums to `(weights(inputs.sum(-2)) * u).sum(-1)`. A frozen map's slopes are those of
    the sums. O(S * rank * d_in + S^2 * rank) per place.
    """
    plain = weights.weights if isinstance(weights, FrozenMap) else weights
    w = u @ plain.tensor.out
    if isinstance(weights, FrozenMap):
        w = w * weights.slope
    left = _with_bias(inputs @ plain.tensor.left, plain.left_bias)
    right = _with_bias(inputs @ plain.tensor.right, plain.right_bias)
    table = (left * w.unsqueeze(-2)) @ right.mT
    table = (table + table.mT) / 2
    table[..., -1, -1] += u @ plain.out_bias
    return table


def _with_bias(rows: Tensor, bias: Tensor) -> Tensor:
    return torch.cat([rows, bias.expand(*rows.shape[:-2], 1, -1)], -2)
