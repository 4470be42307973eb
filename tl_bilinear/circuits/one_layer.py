"""A one-layer model as the parts that its path expansion is made of, norms' gains folded in.

    logits = W_U' [ sum_s x_s + B(sum_s x_s / rho_mlp) + ... ] / rho_final + b

with x_s the virtual sources (virtual_source.py) and W_U' the unembedding behind the final norm's
gain and centring. Denominators are no weights: each part names those that divide it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.circuits.virtual_source import Argument, VirtualSource
from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.attention import folded_attention_weights
from tl_bilinear.hosts.norm import Norm
from tl_bilinear.hosts.sources import has_position_embedding, position_table, stream_sources
from tl_bilinear.quadratic_map import QuadraticMap

ATTENTION, ATTENTION_POST, MLP, MLP_POST, FINAL = (
    "attention",
    "attention post-norm",
    "MLP",
    "MLP post-norm",
    "final",
)
"""Names of the denominators."""
DENOMINATORS = (ATTENTION, ATTENTION_POST, MLP, MLP_POST, FINAL)


@dataclass(frozen=True, eq=False)
class OneLayer:
    """Weights of a one-layer model; embedding tables are the model's own, all else is float64."""

    host: AbstractHost
    sources: tuple[VirtualSource, ...]
    """Parts of the stream that the MLP reads; those of a single vector are biases."""
    mlp: QuadraticMap
    """Of the normalised stream, into the stream: a post-norm's gain is folded in, and `out_bias`
    is b_out through it."""
    mlp_post_bias: Float[Tensor, " d_model"] | None
    """Added behind a post-norm."""
    final: Norm
    logit_bias: Float[Tensor, " d_vocab"]
    """b_U, and what the final norm's bias adds: no denominator divides it."""
    denominators: tuple[str, ...]
    """Those that this model has."""

    def readout(self, start: int = 0, stop: int | None = None) -> Float[Tensor, "tokens d_model"]:
        """Rows of W_U': each token's direction in the stream, final norm folded in; float64."""
        return self.final.fold_readout(self.host.W_U.detach()[:, start:stop].T.double())

    def powers(self, *names: str) -> dict[str, int]:
        """How often each denominator that exists divides, given each time."""
        return {known: names.count(known) for known in self.denominators if known in names}


def one_layer(model: Any) -> OneLayer:
    """The parts of a one-layer model.

    Raises:
        ValueError: a model of more layers, one whose stream is no sum of what is written to it, or
            positions that are neither learned nor rotary.
        NotBilinearError: a gated MLP.
    """
    host = get_host(model)
    if host.n_layers != 1:
        raise ValueError(
            f"the expansion from weights is for one-layer models, and this one has "
            f"{host.n_layers} layers: the terms' number and degree grow too fast. Use "
            "tl_bilinear.source_pairs(model, text, layer, target), which is exact at any depth on "
            "a prompt"
        )
    _ = stream_sources(host, 0)
    weights, post = host.mlp_map(0).to(torch.float64), host.mlp_post_norm(0)
    mlp = weights.contract_out(_through(post, torch.eye(host.d_model).to(weights.tensor.out)).T)
    offset = host.final_norm().bias
    logit_bias = host.b_U.detach().double()
    if offset is not None:
        logit_bias = logit_bias + offset.double() @ host.W_U.detach().double()
    exists = {
        ATTENTION: host.attention_norm(0).exists,
        ATTENTION_POST: host.attention_post_norm(0).exists,
        MLP: host.mlp_norm(0).exists,
        MLP_POST: post.exists,
        FINAL: host.final_norm().exists,
    }
    return OneLayer(
        host=host,
        sources=_sources(host, exists),
        mlp=mlp,
        mlp_post_bias=None if post.bias is None else post.bias.double(),
        final=host.final_norm(),
        logit_bias=logit_bias,
        denominators=tuple(name for name in DENOMINATORS if exists[name]),
    )


def _sources(host: AbstractHost, exists: dict[str, bool]) -> tuple[VirtualSource, ...]:
    weights, post = folded_attention_weights(host, 0), host.attention_post_norm(0)
    inside = {name: 1 for name in (ATTENTION, ATTENTION_POST) if exists[name]}
    after = {name: 1 for name in (ATTENTION_POST,) if exists[name]}
    tables: list[tuple[str, Argument, Tensor]] = [("W_E", "token", host.W_E.detach())]
    positions = position_table(host) if has_position_embedding(host) else None
    if positions is not None:
        tables.append(("W_pos", "position", positions.detach()))
    found = [VirtualSource(name, kind, base, None, {}) for name, kind, base in tables]
    out = _through(post, weights.out)
    for head in range(host.n_heads):
        for name, kind, base in tables:
            maps = weights.value[head], out[head]
            found.append(VirtualSource(f"OV{head} {name}", kind, base, head, inside, *maps))
    # A pattern's row sums to one, so that what the values' biases add is the same everywhere.
    written = torch.einsum("he,hed->d", weights.value_bias, out) + _through(post, weights.out_bias)
    for name, vector, powers in (("b_attn", written, after), ("b_attn post", post.bias, {})):
        if vector is not None and vector.count_nonzero():
            found.append(VirtualSource(name, None, vector.double()[None], None, powers))
    return tuple(found)


def _through(norm: Norm, rows: Tensor) -> Tensor:
    """What a norm with a frozen denominator does, the denominator apart."""
    return norm.frozen(rows, rows.new_ones(1))
