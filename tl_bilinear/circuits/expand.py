"""The path expansion of a one-layer model, from its weights (2305.03452; Elhage et al. 2021).

The logits are a sum over the sources x_s of the stream (the embedding, its image through every
head's OV map, the same of learned positions, biases): W_U x_s past the MLP, and W_U B(x_s, x_t)
through it for every pair. A head's source is summed over the positions it attends to, weighted by
its pattern, so that a pair of heads carries the product of two patterns. The pair of the embedding
with itself is one token's: only the diagonal of its tensor occurs.
"""

import math
from collections.abc import Mapping
from typing import Any

from tl_bilinear.circuits.expansion import PathExpansion
from tl_bilinear.circuits.one_layer import one_layer
from tl_bilinear.circuits.path_list import NamedForm, named_forms
from tl_bilinear.circuits.path_norms import norms
from tl_bilinear.circuits.path_term import PathTerm
from tl_bilinear.hosts.provenance import provenance


def expand_paths(model: Any, *, denominators: Mapping[str, float] | None = None) -> PathExpansion:
    """Every term of a one-layer bilinear model's logits, in float64, from weights alone.

    With S sources there are S terms past the MLP, S(S + 1)/2 pairs, and with biases in the MLP
    S more and constants: 1 + H and (1 + H)(2 + H)/2 for H heads, rotary positions and no bias.

    Args:
        model: a HookedTransformer, a TransformerBridge or a host, of one layer.
        denominators: typical values of the norms' denominators by name ("attention", "MLP",
            "final", ...), by which sizes and shares are to be divided; one where not given.
            `on_prompt(...).denominators` has them for a prompt.

    Cost: the norms take O(d_vocab d_model (d_model + rank)), O(H d_head rank^2) and O(S^2 rank^2)
    time and O(S rank) memory beside a few matrices of d_model x rank; no tensor over the vocabulary
    is built.

    Raises:
        ValueError: a model of more than one layer (use `source_pairs`, which is exact at any depth
            on a prompt), one whose stream is no sum, or an unknown or bad denominator.
        NotBilinearError: a gated MLP.
    """
    layer = one_layer(model)
    given = dict(denominators or {})
    for name, value in given.items():
        if name not in layer.denominators or not (math.isfinite(value) and value > 0):
            raise ValueError(
                f"`denominators` takes positive numbers for {list(layer.denominators)}, got "
                f"{name!r}: {value}"
            )
    forms = named_forms(layer)
    found = norms(layer, {name: named.form for name, named in forms.items()})
    sizes = {name: _size(forms[name], found[name], given) for name in forms}
    total = math.fsum(size**2 for size in sizes.values())
    terms = tuple(
        PathTerm(
            name=name,
            sources=named.sources,
            arguments=tuple(str(source.place) for source in named.families),
            order=sum(source.argument == "token" for source in named.families),
            patterns=named.patterns,
            denominators=named.denominators,
            norm=found[name],
            size=sizes[name],
            share=sizes[name] ** 2 / total if total else 0.0,
        )
        for name, named in forms.items()
    )
    return PathExpansion(
        terms=terms,
        denominators=given,
        provenance=provenance(layer.host, (), "none"),
        layer=layer,
        forms=forms,
    )


def _size(named: NamedForm, norm: float, denominators: Mapping[str, float]) -> float:
    entries = math.prod(source.n for source in named.families)
    scale = math.prod(denominators.get(n, 1.0) ** power for n, power in named.denominators.items())
    return norm / entries**0.5 / scale
