"""Logits at a few positions, without unembedding the others."""

from jaxtyping import Float, Int
from torch import Tensor

from tl_bilinear.hosts.host import AbstractHost

UNEMBEDDED = "unembed.hook_in"


def logits_at(
    host: AbstractHost,
    tokens: Int[Tensor, "batch pos"],
    row: Int[Tensor, " site"],
    pos: Int[Tensor, " site"],
) -> Float[Tensor, "site d_vocab"]:
    """`model(tokens)[row, pos]`, differentiable where gradients are on.

    The final stream of the sites alone goes on to the unembedding. It is a large part of a pass
    where the vocabulary is large, and of what a pass holds in memory: here O(site d_vocab).
    """
    row, pos = row.to(host.device), pos.to(host.device)

    def chosen(value: Tensor, hook: object = None) -> Tensor:
        return value[row.to(value.device), pos.to(value.device)][None]

    with host.hooks([(UNEMBEDDED, chosen)]):
        return host.model(tokens.to(host.device))[0]
