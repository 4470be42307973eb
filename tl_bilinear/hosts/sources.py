"""The residual stream as a sum: embedding, position, every head, every MLP, every bias.

What an attention or an MLP reads is the sum of what was written before it. Norms between a
sublayer and the stream are frozen, as everywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.hosts.writing import require_additive, writing_hooks

SourceKind = Literal["embedding", "position", "head", "bias", "mlp", "constant"]


@dataclass(frozen=True)
class Source:
    """One additive part of the stream; "constant" is the 1 that an MLP's or a head's own biases
    multiply, which is no part of the stream."""

    kind: SourceKind
    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        if self.kind == "head":
            return f"L{self.layer}H{self.head}"
        if self.kind == "bias":
            return f"L{self.layer} attention bias"
        return f"L{self.layer} MLP" if self.kind == "mlp" else self.kind


CONSTANT = Source("constant")


def source_index(sources: Sequence[Source], source: Source | str) -> int:
    """The place of a source among others, given itself or its name (such as "L0H3").

    Raises:
        ValueError: a source that is not among them.
    """
    names = [str(known) for known in sources]
    if str(source) not in names:
        raise ValueError(f"no source {str(source)!r}: give one of {names}")
    return names.index(str(source))


def has_position_embedding(host: AbstractHost) -> bool:
    """Whether positions are added to the stream, rather than rotate queries and keys.

    Raises:
        ValueError: positions of another kind (added to queries and keys, or to scores).
    """
    kind = getattr(host.model.cfg, "positional_embedding_type", "standard")
    if kind not in ("standard", "rotary"):
        raise ValueError(
            f"this model's positions are of the kind {kind!r}: sources are known for learned "
            '("standard") and "rotary" positions'
        )
    return kind == "standard"


def position_table(host: AbstractHost) -> Float[Tensor, "n_ctx d_model"] | None:
    """W_pos; None where positions rotate queries and keys instead."""
    return host.model.pos_embed.W_pos if has_position_embedding(host) else None


def stream_sources(
    host: AbstractHost, layer: int, where: Literal["pre", "mid"] = "mid"
) -> tuple[Source, ...]:
    """What the stream is the sum of before a layer's attention ("pre") or before its MLP ("mid").

    Raises:
        ValueError: a layer that does not exist, or a model whose stream is no such sum.
    """
    _ = host._block(layer)
    require_additive(host)
    if f"blocks.{layer}.hook_resid_mid" not in host.model.hook_dict:
        raise ValueError(
            f"layer {layer} has no stream between attention and MLP (they stand in parallel, or it "
            "has no MLP): its sources are not known"
        )
    sources = [Source("embedding")]
    if has_position_embedding(host):
        sources.append(Source("position"))
    for i in range(layer + 1):
        if i < layer or where == "mid":
            sources += [Source("head", i, head) for head in range(host.n_heads)]
            sources.append(Source("bias", i))
        if i < layer:
            sources.append(Source("mlp", i))
    return tuple(sources)


def source_hooks(host: AbstractHost, layer: int, where: Literal["pre", "mid"] = "mid") -> list[str]:
    """The hooks that `source_values` needs."""
    hooks = [host.embedding_site()]
    if has_position_embedding(host):
        hooks.append("hook_embed")
    for i in range(layer + 1):
        if i < layer or where == "mid":
            hooks += [host.head_site(i), *writing_hooks(host, i)]
        if i < layer:
            hooks.append(f"blocks.{i}.hook_mlp_out")  # behind a post-norm where there is one
    return hooks


def source_values(
    host: AbstractHost,
    sources: tuple[Source, ...],
    values: Mapping[str, Float[Tensor, "*batch width"]],
) -> Float[Tensor, "*batch source d_model"]:
    """What each source writes, in float64; their sum is the stream.

    Args:
        values: of `source_hooks`, trailing axes flattened. O(S * d_head * d_model) per place.
    """
    rows: list[Tensor] = []
    heads: dict[int, Tensor] = {}
    for source in sources:
        embedding = values[host.embedding_site()].double()
        if source.kind == "embedding":
            rows.append(values.get("hook_embed", embedding).double())
        elif source.kind == "position":
            rows.append(embedding - values["hook_embed"].double())
        elif source.kind == "mlp":
            rows.append(values[f"blocks.{source.layer}.hook_mlp_out"].double())
        elif source.kind == "bias":
            assert source.layer is not None
            rows.append(_attention_bias(host, source.layer, values).expand_as(embedding))
        elif source.kind == "head":
            assert source.layer is not None and source.head is not None
            if source.layer not in heads:
                heads[source.layer] = _heads(host, source.layer, values)
            rows.append(heads[source.layer][..., source.head, :])
        else:
            raise ValueError(f"the source {source} is no part of the stream")
    return torch.stack(rows, -2)


def _heads(host: AbstractHost, layer: int, values: Mapping[str, Tensor]) -> Tensor:
    z = values[host.head_site(layer)].double().unflatten(-1, (host.n_heads, host.d_head))
    written = torch.einsum("...he,hed->...hd", z, host.W_O(layer).detach().double())
    scale = _post_scale(host, layer, values)
    return host.attention_post_norm(layer).frozen(written, scale.unsqueeze(-1))


def _attention_bias(host: AbstractHost, layer: int, values: Mapping[str, Tensor]) -> Tensor:
    norm = host.attention_post_norm(layer)
    bias = host.b_O(layer).detach().double()
    bias = norm.frozen(bias, _post_scale(host, layer, values))
    return bias if norm.bias is None else bias + norm.bias.double()


def _post_scale(host: AbstractHost, layer: int, values: Mapping[str, Tensor]) -> Tensor:
    site = host.attention_post_scale_site(layer)
    if site is None:
        return torch.ones((), dtype=torch.float64, device=host.device)[None]
    return values[site].double()
