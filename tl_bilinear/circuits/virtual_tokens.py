"""Interactions in the virtual-token basis: every token directly, and through every head.

For an output direction u the MLP's interaction matrix over virtual tokens c_i (rows of
[E ; OV_1 E ; ... ; OV_H E]) is I[i, j] = c_i^T Q(u) c_j, as large as (1 + H) d_vocab squared. Its
eigenvectors are found in the stream: with G = sum_i c_i c_i^T and G^(1/2) Q G^(1/2) = V diag V^T,
the k-th has the entries c_i . f_k, f_k = G^(-1/2) v_k, and norm one.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.circuits.one_layer import OneLayer
from tl_bilinear.circuits.token_target import TokenTarget
from tl_bilinear.circuits.virtual_source import VirtualSource, base_gram, square_root
from tl_bilinear.hosts.prompts import token_names
from tl_bilinear.hosts.provenance import Provenance

CUTOFF = 1e-10
"""Of G's largest eigenvalue: below it no virtual token reaches."""


@dataclass(frozen=True)
class VirtualToken:
    """One entry of an eigenvector."""

    source: str
    """"W_E" directly, "OV1 W_E" through head 1."""
    token: str
    id: int
    weight: float
    """The eigenvector's entry, signed."""


@dataclass(frozen=True, eq=False)
class VirtualModes:
    """Eigenvectors of the interaction matrix over virtual tokens, by falling |eigenvalue|.

    The quadratic part of the target on a stream x that is a combination of virtual tokens is
    sum_k eigenvalue_k (sum_i a_i weight_k(i))^2, a_i the combination's coefficients; the
    denominators (ρ_mlp^2, ρ_final, and those of the heads) are taken as one.
    """

    target: str
    eigenvalues: Float[Tensor, " k"]
    functionals: Float[Tensor, "k d_model"]
    """f_k: a virtual token's weight is its vector's dot product with f_k. The sign is that of the
    entry of largest magnitude of v_k."""
    sources: tuple[str, ...]
    by_source: Float[Tensor, "k source"]
    """Sum of the squared weights of each source's virtual tokens; rows sum to one."""
    provenance: Provenance
    layer: OneLayer = field(repr=False)

    def top_tokens(self, index: int, k: int = 10) -> tuple[VirtualToken, ...]:
        """The k virtual tokens of largest |weight| in one eigenvector. O(S d_vocab d_head)."""
        if not 0 <= index < len(self.eigenvalues):
            raise ValueError(f"`index` {index}: there are {len(self.eigenvalues)} eigenvectors")
        rows: list[tuple[float, str, int, VirtualSource]] = []
        for source in token_sources(self.layer):
            functional = source.outward(self.functionals[index][:, None])
            weights = torch.cat([block @ functional for _, block in source.blocks()])[:, 0]
            best = weights.abs().topk(min(k, len(weights))).indices.tolist()
            rows += [(float(weights[i]), source.name, i, source) for i in best]
        rows.sort(key=lambda row: -abs(row[0]))
        return tuple(
            VirtualToken(name, argument_name(self.layer, source, i), i, weight)
            for weight, name, i, source in rows[:k]
        )

    def __str__(self) -> str:
        lines = [f"virtual-token modes for {self.target}"]
        for index, value in enumerate(self.eigenvalues[:6].tolist()):
            tokens = ", ".join(
                f"{t.source.removesuffix(' W_E')}:{t.token!r} {t.weight:+.2f}"
                for t in self.top_tokens(index, 6)
            )
            lines.append(f"  {index}  {value:+.4g}  {tokens}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class VirtualTokens:
    """A block of the interaction matrix over virtual tokens.

    Two different virtual tokens i, j together add 2 matrix[i, j] to the target, one with itself
    matrix[i, i] (denominators and patterns one). Two different tokens of W_E never meet: at one
    position stands one token.
    """

    target: str
    labels: tuple[tuple[str, str], ...]
    """(source, token) of each row and column."""
    matrix: Float[Tensor, "n n"]


def virtual_modes(
    layer: OneLayer, target: TokenTarget, k: int, provenance: Provenance
) -> VirtualModes:
    """See `PathExpansion.virtual_modes`."""
    if not 1 <= k <= layer.host.d_model:
        raise ValueError(f"`k` must be between 1 and d_model = {layer.host.d_model}, got {k}")
    gram = base_gram(layer.host.W_E.detach())
    roots = [square_root(source, gram) for source in token_sources(layer)]
    by_source = [root.T @ root for root in roots]
    values, vectors = torch.linalg.eigh(torch.stack(by_source).sum(0))
    reached = values > CUTOFF * values[-1]
    values, vectors = values[reached], vectors[:, reached]
    half = vectors * values.sqrt()  # G = half half^T
    eigenvalues, v = torch.linalg.eigh(
        half.T @ layer.mlp.tensor.interaction_matrix(target.u) @ half
    )
    order = eigenvalues.abs().argsort(descending=True, stable=True)[:k]
    v = v[:, order]
    v = v * torch.where(v.gather(0, v.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)
    functionals = ((vectors / values.sqrt()) @ v).T
    shares = [((functionals @ gram) * functionals).sum(-1) for gram in by_source]
    return VirtualModes(
        target=target.label,
        eigenvalues=eigenvalues[order],
        functionals=functionals,
        sources=tuple(source.name for source in token_sources(layer)),
        by_source=torch.stack(shares, -1),
        provenance=provenance,
        layer=layer,
    )


def virtual_tokens(layer: OneLayer, target: TokenTarget, ids: Tensor) -> VirtualTokens:
    """See `PathExpansion.virtual_tokens`."""
    rows, labels = [], []
    for source in token_sources(layer):
        rows.append(source.restricted(ids).rows())
        labels += [(source.name, argument_name(layer, source, i)) for i in ids.tolist()]
    basis = torch.cat(rows)
    matrix = basis @ layer.mlp.tensor.interaction_matrix(target.u) @ basis.T
    return VirtualTokens(target.label, tuple(labels), matrix)


def token_sources(layer: OneLayer) -> list[VirtualSource]:
    """The embedding and its image through every head."""
    return [source for source in layer.sources if source.argument == "token"]


def argument_name(layer: OneLayer, source: VirtualSource, index: int) -> str:
    """A token's text, "position 3", or nothing for a bias."""
    if source.argument is None:
        return ""
    if source.argument == "position":
        return f"position {index}"
    return token_names(layer.host, torch.tensor([index]))[0]
