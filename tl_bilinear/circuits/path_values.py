"""The value of every term of a one-layer model on a prompt, in a sum that closes.

Attention patterns and denominators are the forward pass's; everything else is the weights'.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_bilinear.circuits.mlp_pairs import pair_table
from tl_bilinear.circuits.one_layer import ATTENTION_POST, OneLayer
from tl_bilinear.circuits.path_list import ONE, linear_name, pair_name
from tl_bilinear.circuits.token_target import readout_bias
from tl_bilinear.circuits.virtual_source import VirtualSource
from tl_bilinear.hosts.attention import attention_scale_site, mlp_scale_site, pattern_site
from tl_bilinear.hosts.checked_map import checked_mlp_map
from tl_bilinear.hosts.prompts import Text, split_prompts, tokenize
from tl_bilinear.hosts.provenance import Provenance, provenance
from tl_bilinear.hosts.reading import (
    Positions,
    Reading,
    denominators,
    directions,
    take_reading,
    target_values,
)
from tl_bilinear.hosts.target import Target
from tl_bilinear.hosts.writing import frozen_maps, writing_hooks


@dataclass(frozen=True, eq=False)
class PathValues:
    """What every term adds to a target, in logits; a site is where the target is read."""

    terms: tuple[str, ...]
    sites: tuple[str, ...]
    positions: Int[Tensor, "batch site"]
    values: Float[Tensor, "batch site term"]
    target: Float[Tensor, "batch site"]
    """The model's own value, from its logits."""
    denominators: Mapping[str, Float[Tensor, "batch site"]]
    """At the sites: by name, as `expand_paths` takes them (that of the attention's norm, which
    divides at the attended positions, is the site's own here)."""
    provenance: Provenance

    @property
    def total(self) -> Float[Tensor, "batch site"]:
        """The sum of all terms."""
        return self.values.sum(-1)

    @property
    def discrepancy(self) -> Float[Tensor, "batch site"]:
        """Target minus total: rounding error, or something is wrong."""
        return self.target - self.total

    def value(self, term: str) -> Float[Tensor, "batch site"]:
        """One term's value.

        Raises:
            ValueError: a term that the model does not have.
        """
        if term not in self.terms:
            raise ValueError(f"no term {term!r}: give one of {list(self.terms)}")
        return self.values[..., self.terms.index(term)]

    def top(self, k: int, batch: int = 0, site: int = 0) -> tuple[tuple[str, float], ...]:
        """The k terms of largest |value| at one place."""
        values = self.values[batch, site]
        order = values.abs().argsort(descending=True, stable=True)[:k].tolist()
        return tuple((self.terms[i], float(values[i])) for i in order)

    def __str__(self) -> str:
        rows = self.top(12)
        width = max(len(name) for name, _ in [*rows, ("all others", 0.0)])
        lines = [f"  {name:<{width}}  {value:+.4f}" for name, value in rows]
        rest = float(self.total[0, 0]) - sum(value for _, value in rows)
        title = f"{self.sites[0]}: {float(self.target[0, 0]):+.3f} logits"
        return "\n".join([title, *lines, f"  {'all others':<{width}}  {rest:+.4f}"])


def path_values(
    layer: OneLayer,
    terms: tuple[str, ...],
    text: Text,
    target: Target,
    positions: Positions = "last",
) -> PathValues:
    """Every term's value; see `PathExpansion.on_prompt`.

    Raises:
        NotBilinearError: an MLP whose output its weights do not reproduce.
    """
    host = layer.host
    if hasattr(text, "cache_dict"):
        raise ValueError("give a text or token ids: a cache does not say which tokens were read")
    scales = {"MLP": mlp_scale_site(host, 0), "attention": attention_scale_site(host, 0)}
    hooks = [site for site in scales.values() if site is not None] + writing_hooks(host, 0)
    inside, written = host.mlp_input_site(0), host.mlp_out_site(0)
    reading = take_reading(host, text, target, [*hooks, inside, written], positions)
    checked_mlp_map(host, 0, reading.values[inside], reading.values[written])
    found = {
        name: reading.values[site][..., 0] for name, site in scales.items() if site is not None
    }
    posts = {"attention post-norm": host.attention_post_scale_site(0)}
    posts["MLP post-norm"] = host.mlp_post_scale_site(0)
    found |= {n: reading.values[site][..., 0] for n, site in posts.items() if site is not None}
    if host.final_norm().exists:
        found["final"] = denominators(host, reading)
    rows = tokenize(host, split_prompts(text))
    streams = torch.stack([_streams(layer, reading, row, b) for b, row in enumerate(rows)])
    if ATTENTION_POST in found:
        divided = [ATTENTION_POST in source.denominators for source in layer.sources]
        post = torch.tensor(divided, device=streams.device)
        sigma = found[ATTENTION_POST][..., None, None]
        streams = torch.where(post[:, None], streams / sigma, streams)
    values = _values(layer, reading, streams, found)
    frozen = ("attention patterns", *frozen_maps(host), "denominators of the norms inside")
    return PathValues(
        terms=terms,
        sites=reading.labels(),
        positions=reading.positions,
        values=torch.stack([values[name] for name in terms], -1),
        target=target_values(host, reading),
        denominators=found,
        provenance=provenance(host, frozen, "none"),
    )


def _values(
    layer: OneLayer,
    reading: Reading,
    streams: Float[Tensor, "batch site source d_model"],
    scales: Mapping[str, Tensor],
) -> dict[str, Float[Tensor, "batch site"]]:
    """By name, those that are zero included."""
    one = torch.ones_like(streams[..., 0, 0])
    final, post = scales.get("final", one), scales.get("MLP post-norm", one)
    u = directions(layer.host, reading)
    names = [source.name for source in layer.sources]
    past = torch.einsum("bsxd,sd->bsx", streams, u) / final[..., None]
    values = {linear_name(name): past[..., i] for i, name in enumerate(names)}
    inputs = streams / scales.get("MLP", one)[..., None, None]
    table = pair_table(layer.mlp, inputs, u / (final * post)[..., None])
    names.append(ONE)
    for i, first in enumerate(names):
        for j, second in enumerate(names[i:], i):
            values[pair_name(first, second)] = table[..., i, j] * (1 if i == j else 2)
    if layer.mlp_post_bias is not None:
        values["W_U b_mlp post"] = (u @ layer.mlp_post_bias) / final
    bias = torch.stack([readout_bias(layer.host, readout) for readout in reading.readouts])
    return values | {"b_U": bias.expand_as(one)}


def _streams(
    layer: OneLayer, reading: Reading, prompt: Tensor, batch: int
) -> Float[Tensor, "site source d_model"]:
    """What each source adds to the stream at one prompt's sites, a post-norm's scale apart."""
    host, scale = layer.host, attention_scale_site(layer.host, 0)
    hooks = [pattern_site(0), *([scale] if scale else [])]
    runs: dict[tuple[int, ...], Tensor] = {}
    rows = []
    for site, readout in enumerate(reading.readouts):
        prefix = readout.prefix
        if prefix not in runs:
            tokens = torch.cat([prompt, torch.tensor(prefix, dtype=prompt.dtype)])
            _, values = host.read(tokens[None], hooks)
            weights = values[pattern_site(0)][0].double()
            if scale is not None:
                weights = weights / values[scale][0, :, 0].double()
            sources = [_everywhere(source, tokens, weights) for source in layer.sources]
            runs[prefix] = torch.stack(sources, 1)
        rows.append(runs[prefix][int(reading.positions[batch, site])])
    return torch.stack(rows)


def _everywhere(
    source: VirtualSource, tokens: Tensor, weights: Float[Tensor, "head query key"]
) -> Float[Tensor, "pos d_model"]:
    """One source at every position of a prompt."""
    n_pos = len(tokens)
    if source.argument is None:
        return source.rows().expand(n_pos, -1)
    ids = tokens if source.argument == "token" else torch.arange(n_pos)
    rows = source.base[ids.to(source.base.device)].double()
    rows = rows if source.inner is None else rows @ source.inner
    return source.through(rows if source.head is None else weights[source.head] @ rows)
