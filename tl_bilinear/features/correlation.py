"""How well a few eigenvectors of an output feature's interaction matrix follow its activation.

    approximation of rank k: sum of lambda_m (v_m . x)^2 over the k largest |lambda_m| of Q(u)

correlated (Pearson) over text with the dictionary's own activation of that feature, over all
tokens and over those where it is active (2410.08417 section 5 and figure 9). Features that are
active on too few tokens have no figure (nan), as there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_bilinear.decompositions.eigen import Gauge, eigendecompose
from tl_bilinear.dictionary import Dictionary, Side
from tl_bilinear.features.side import Features, choose, place_output
from tl_bilinear.hosts import get_host
from tl_bilinear.hosts.corpus import hook_batches
from tl_bilinear.hosts.provenance import Provenance, provenance

RANKS = (1, 2, 4, 8, 16)
MIN_ACTIVE = 10


@dataclass(frozen=True, eq=False)
class FeatureCorrelations:
    """Pearson correlations, per output feature and number of eigenvectors."""

    features: tuple[int, ...]
    ranks: tuple[int, ...]
    overall: Float[Tensor, "feature rank"]
    """Over all tokens; nan for a feature with too few active ones."""
    active: Float[Tensor, "feature rank"]
    """Over the tokens where the feature is active; nan as above."""
    counts: Int[Tensor, " feature"]
    """Tokens where the feature is active."""
    tokens: int
    provenance: Provenance

    def mean(self, rank: int, *, active: bool = False) -> float:
        """Mean over the features that have a figure."""
        return float(self._column(rank, active).nanmean())

    def share_above(self, limit: float, rank: int, *, active: bool = False) -> float:
        """Share of the features with a figure whose correlation is above a limit."""
        column = self._column(rank, active)
        column = column[~column.isnan()]
        return float((column > limit).double().mean())

    def _column(self, rank: int, active: bool) -> Float[Tensor, " feature"]:
        if rank not in self.ranks:
            raise ValueError(f"`rank` {rank} was not measured: ranks are {self.ranks}")
        return (self.active if active else self.overall)[:, self.ranks.index(rank)]


def correlate_eigenvectors(
    model: Any,
    layer: int,
    out_features: Features,
    texts: Iterable[str],
    features: Sequence[int] | None = None,
    *,
    readout: Side = "encoder",
    ranks: Sequence[int] = RANKS,
    min_active: int = MIN_ACTIVE,
    gauge: Gauge = "none",
) -> FeatureCorrelations:
    """Correlations of the top eigenvectors' approximation with output features' activations.

    Texts are streamed, each without its first token (BOS); O(features * max(ranks) * d_model)
    per token, one eigh of d_model^2 per feature. In float64.

    Args:
        out_features: a dictionary of the MLP's output; plain directions have no activation.
        features: which output features; all of them where it is None.
        readout: whether u is a feature's "encoder" column or its "decoder" row.
        ranks: how many eigenvectors, by |lambda|.
        min_active: features active on at most this many tokens get no figure.

    Raises:
        ValueError: no dictionary, one of another width, layer or place; unknown features;
            ranks out of range; texts without a token.
    """
    host = get_host(model)
    if not isinstance(out_features, Dictionary):
        raise ValueError("plain directions have no activations: give a Dictionary to correlate")
    place, outputs = place_output(host, layer, out_features, readout)
    chosen = choose(features, len(outputs))
    ranks = tuple(ranks)
    if not ranks or any(not 1 <= rank <= host.d_model for rank in ranks):
        raise ValueError(f"`ranks` must be between 1 and d_model = {host.d_model}, got {ranks}")
    dictionary = out_features.to(host.device, torch.float64)
    tensor = host.mlp_tensor(layer).to(torch.float64)
    directions = place.fold(outputs[list(chosen)].to(host.device, torch.float64))
    eigen = eigendecompose(tensor, directions, max(ranks), gauge=gauge)
    hooks = [host.mlp_input_site(layer), place.readable]
    hooks += [] if place.scale_hook is None else [place.scale_hook]
    sums = _Sums(len(chosen), len(ranks), host.device)
    columns = torch.tensor([rank - 1 for rank in ranks], device=host.device)
    for values in hook_batches(host, texts, hooks):
        x = values[hooks[0]]
        parts = eigen.eigenvalues * torch.einsum("td,fkd->tfk", x, eigen.eigenvectors) ** 2
        approximations = parts.cumsum(-1)[..., columns]
        if place.scale_hook is not None:
            approximations = approximations / values[place.scale_hook][:, :, None]
        activations = dictionary.encode(values[place.readable])[:, list(chosen)]
        sums.add(activations[..., None], approximations)
    if not sums.tokens:
        raise ValueError("the texts hold no token behind their first one")
    rare = sums.counts[0] <= min_active
    overall, active = sums.correlations()
    return FeatureCorrelations(
        features=chosen,
        ranks=ranks,
        overall=overall.masked_fill(rare[:, None], float("nan")),
        active=active.masked_fill(rare[:, None], float("nan")),
        counts=sums.counts[0],
        tokens=sums.tokens,
        provenance=provenance(host, place.frozen, gauge),
    )


class _Sums:
    """Running first and second moments of two variables, over all tokens and over active ones."""

    def __init__(self, features: int, ranks: int, device: torch.device):
        self.tokens = 0
        self.counts = torch.zeros(1, features, dtype=torch.long, device=device)
        zeros = torch.zeros(2, 5, features, ranks, dtype=torch.float64, device=device)
        self.sums = zeros

    def add(
        self, a: Float[Tensor, "token feature 1"], b: Float[Tensor, "token feature rank"]
    ) -> None:
        """Tokens of activations a and approximations b."""
        on = (a > 0).double()
        self.tokens += len(a)
        self.counts += on[..., 0].sum(0).long()
        a = a.expand_as(b)
        for which, weight in enumerate((torch.ones_like(on), on)):
            parts = (a, b, a * a, b * b, a * b)
            self.sums[which] += torch.stack([(weight * part).sum(0) for part in parts])

    def correlations(self) -> tuple[Tensor, Tensor]:
        """Pearson's r, over all tokens and over active ones; nan where one does not vary."""
        counts = torch.full_like(self.counts[0], self.tokens), self.counts[0]
        return tuple(
            _pearson(sums, count[:, None].double())
            for sums, count in zip(self.sums, counts, strict=True)
        )  # pyright: ignore[reportReturnType]


def _pearson(sums: Float[Tensor, "5 feature rank"], count: Float[Tensor, "feature 1"]) -> Tensor:
    a, b, aa, bb, ab = sums / count
    variances = (aa - a * a).clamp_min(0) * (bb - b * b).clamp_min(0)
    r = (ab - a * b) / variances.sqrt()
    return torch.where(variances > 0, r, torch.nan)
