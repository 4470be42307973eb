"""Frobenius norms of a one-layer model's terms, without a tensor over the vocabulary.

A term's norm needs its sources through their Gram matrices alone: with F^T F = sum_i x_i x_i^T,
A = F left, B = F right, and O = out^T G_U out (G_U the unembedding's Gram matrix), the pair term
T[o, i, j] = 2 B_s(x_i, y_j)_o has

    |T|^2 = sum_rs O (A^T A * B'^T B' + A^T B * B'^T A' + B^T A * A'^T B' + B^T B * A'^T A')

primes for the second source (DESIGN 2.7's Gram route, with a metric on each leg).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.circuits.one_layer import OneLayer
from tl_bilinear.circuits.path_forms import Fixed, Form, Pairs, Rows
from tl_bilinear.circuits.virtual_source import VirtualSource, base_gram, square_root

RANKS = 512
"""Rows of a rank x rank Gram matrix that are held at once."""


def norms(layer: OneLayer, forms: dict[str, Form], ranks: int = RANKS) -> dict[str, float]:
    """The Frobenius norm of each term over logits and arguments, every denominator one.

    O(d_vocab d_model (d_model + rank)) for the vocabulary, O(S d_head rank^2) for S sources (with
    d_model for the embedding), O(S^2 rank^2) for the pairs; memory O(S ranks rank).
    """
    readout = _readout_root(layer)
    found = {
        name: _square(layer, form, readout)
        for name, form in forms.items()
        if not isinstance(form, Pairs)
    }
    found |= _pair_squares({n: f for n, f in forms.items() if isinstance(f, Pairs)}, readout, ranks)
    return {name: max(0.0, float(found[name])) ** 0.5 for name in forms}


def _readout_root(layer: OneLayer) -> Float[Tensor, "d_model d_model"]:
    """F with F^T F the Gram matrix of W_U'."""
    gram = base_gram(layer.host.W_U.detach().T)
    gram = layer.final.fold_readout(layer.final.fold_readout(gram).T)
    values, vectors = torch.linalg.eigh(gram)
    return values.clamp_min(0).sqrt()[:, None] * vectors.T


def _square(layer: OneLayer, form: Fixed | Rows, readout: Tensor) -> Tensor:
    if isinstance(form, Fixed):
        vector = form.vector if form.on_logits else readout @ form.vector
        return vector.square().sum()
    matrix = form.matrix @ readout.T
    total = matrix.new_zeros(())
    for _, rows in form.blocks():
        total = total + (rows @ matrix).square().sum()
    return total


def _pair_squares(
    forms: dict[str, Pairs], readout: Tensor, ranks: int
) -> dict[str, Float[Tensor, ""]]:
    if not forms:
        return {}
    tensor = next(iter(forms.values())).tensor
    sources = {id(s): s for form in forms.values() for s in (form.first, form.second)}
    legs = _legs(list(sources.values()), tensor.left, tensor.right)
    out = readout @ tensor.out
    total = {name: out.new_zeros(()) for name in forms}
    for start in range(0, tensor.rank, ranks):
        part = slice(start, start + ranks)
        weights = out[:, part].T @ out
        grams = {
            key: tuple(x[:, part].T @ y for x in (a, b) for y in (a, b))
            for key, (a, b) in legs.items()
        }  # A^T A, A^T B, B^T A, B^T B
        for name, form in forms.items():
            aa, ab, ba, bb = grams[id(form.first)]
            aa_, ab_, ba_, bb_ = grams[id(form.second)]
            inner = aa * bb_ + ab * ba_ + ba * ab_ + bb * aa_
            scale = 0.25 if form.same else 1.0
            total[name] = total[name] + scale * (weights * inner).sum()
    return total


def _legs(
    sources: list[VirtualSource], left: Tensor, right: Tensor
) -> dict[int, tuple[Tensor, Tensor]]:
    """F left and F right of every source; the tables' Gram matrices are made once."""
    grams: dict[int, Tensor] = {}
    found = {}
    for source in sources:
        table = id(source.base)
        if table not in grams:
            grams[table] = base_gram(source.base)
        root = square_root(source, grams[table])
        found[id(source)] = (root @ left, root @ right)
    return found
