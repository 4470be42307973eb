"""A one-layer model's path expansion as a result: its terms, and what can be asked of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor

from tl_bilinear.circuits.one_layer import OneLayer
from tl_bilinear.circuits.path_entries import (
    PathEntries,
    PathEntry,
    largest_along,
    largest_logits,
    largest_products,
)
from tl_bilinear.circuits.path_forms import Fixed, Form, Pairs, Rows
from tl_bilinear.circuits.path_list import NamedForm
from tl_bilinear.circuits.path_term import PathTerm, TokenMatrix
from tl_bilinear.circuits.path_values import PathValues, path_values
from tl_bilinear.circuits.score_terms import ScoreTerm, score_terms
from tl_bilinear.circuits.token_target import token_ids, token_target
from tl_bilinear.circuits.virtual_source import BLOCK, VirtualSource
from tl_bilinear.circuits.virtual_tokens import (
    VirtualModes,
    VirtualTokens,
    argument_name,
    virtual_modes,
    virtual_tokens,
)
from tl_bilinear.hosts.prompts import Text
from tl_bilinear.hosts.provenance import Provenance, fingerprint
from tl_bilinear.hosts.reading import Positions
from tl_bilinear.hosts.target import Target
from tl_bilinear.tensor import BilinearTensor


@dataclass(frozen=True, eq=False)
class PathExpansion:
    """Every term of a one-layer model's logits, from its weights.

    It holds float64 copies of the heads' and the MLP's weights, and reads the model's embedding,
    position and unembedding tables where it needs them. Once the model has another fingerprint (its
    embedding, unembedding or MLP were edited), every question raises a ValueError: expand again.
    """

    terms: tuple[PathTerm, ...]
    """Past the MLP, pairs of sources, the MLP's linear part, constants."""
    denominators: Mapping[str, float]
    """What sizes and shares were divided by."""
    provenance: Provenance
    layer: OneLayer = field(repr=False)
    forms: Mapping[str, NamedForm] = field(repr=False)

    def term(self, name: str) -> PathTerm:
        """The term of that name.

        Raises:
            ValueError: there is none.
        """
        names = [term.name for term in self.terms]
        if name not in names:
            raise ValueError(f"no term {name!r}: give one of {names}")
        return self.terms[names.index(name)]

    def tensor(self, name: str) -> TokenMatrix | BilinearTensor:
        """A term as a factored tensor: logits by one argument, or by two, in float64.

        Denominators and patterns are one. A BilinearTensor has B[o, i, j] for the first and the
        second argument. Memory O(d_vocab rank): this is for small models and for checks; `top`
        streams instead.
        """
        form, layer = self._form(name), self.layer
        if isinstance(form, Fixed):
            vector = form.vector if form.on_logits else layer.readout() @ form.vector
            return TokenMatrix(vector[:, None], vector.new_ones(1, 1))
        if isinstance(form, Rows):
            inputs = torch.cat([rows for _, rows in form.blocks()])
            return TokenMatrix(layer.readout() @ form.matrix.T, inputs)
        first, second = form.first.rows(), form.second.rows()
        left, right = form.tensor.left, form.tensor.right
        out = layer.readout() @ form.tensor.out * (form.coefficient / 2)
        return BilinearTensor(
            left=torch.cat([first @ left, first @ right], 1),
            right=torch.cat([second @ right, second @ left], 1),
            out=torch.cat([out, out], 1),
            shared_input=False,
        )

    def top(
        self,
        name: str,
        target: Target | None = None,
        k: int = 10,
        *,
        among: Iterable[int | str] | None = None,
        block: int = BLOCK,
    ) -> PathEntries:
        """The k entries of largest magnitude of a term, streamed over the vocabulary.

        Args:
            name: the term's.
            target: a token (text or id), a pair of single tokens, or a direction [d_model]. Without
                one, a term of one argument gives the largest (argument, output token) entries:
                of "W_U W_E" the bigrams.
            among: token ids or texts to choose arguments from, such as those that occur in a text:
                embeddings of tokens that were never trained are noise.
            block: rows of the vocabulary per tile; the result does not depend on it.

        Cost: O(d_vocab d_model) with a target and one argument; O(d_vocab^2 d_head) for two
        arguments of which one is a head's, d_model instead of d_head else (the same without a
        target); O(block^2) memory.

        Raises:
            ValueError: an unknown term or target, a target of several tokens, k below 1, a term of
                two arguments without a target.
        """
        if k < 1:
            raise ValueError(f"`k` must be at least 1, got {k}")
        ids = None if among is None else token_ids(self.layer.host, among).unique()
        form = _restricted(self._form(name), ids)
        places = tuple(p for p in (s.place for s in self.forms[name].families) if p is not None)
        if target is None:
            return self._top_logits(name, form, places, k, ids, block)
        aim = token_target(self.layer.host, target)
        if isinstance(form, Fixed) and form.on_logits:
            found = (
                torch.zeros(1, 0, dtype=torch.long),
                torch.tensor([aim.bias], dtype=torch.float64),
            )
        else:
            found = largest_along(form, aim.u, k, block)
        unordered = isinstance(form, Pairs) and form.same
        families = self.forms[name].families
        rows = self._labelled(found[0], found[1], families, ids)
        return PathEntries(name, aim.label, places, rows, unordered)

    def on_prompt(self, text: Text, target: Target, *, positions: Positions = "last") -> PathValues:
        """The value of every term on a prompt: they sum to the target, to rounding error.

        Attention patterns and denominators are taken from the forward pass. Two forward passes per
        prompt and appended string of tokens; O(pos^2 d_head + pos d_model^2) per head and prompt.

        Args:
            text: a text, several texts, token ids [pos] or [batch, pos].
            target: also a string of several tokens: their sum, each where the model predicts it.
            positions: "last" reads where each prompt ends, "all" at every position.

        Raises:
            ValueError: bad prompts, target or positions.
        """
        self._require_unedited()
        names = tuple(term.name for term in self.terms)
        return path_values(self.layer, names, text, target, positions)

    def virtual_modes(self, target: Target, k: int = 8) -> VirtualModes:
        """Eigenvectors of the interaction matrix over all virtual tokens, with top tokens.

        O(d_vocab d_model^2 + d_model^3): the matrix is never built.

        Raises:
            ValueError: an unknown target, one of several tokens, or k out of range.
        """
        self._require_unedited()
        aim = token_target(self.layer.host, target)
        return virtual_modes(self.layer, aim, k, self.provenance)

    def virtual_tokens(self, target: Target, tokens: Iterable[int | str]) -> VirtualTokens:
        """The interaction matrix of some tokens, each directly and through every head.

        Args:
            tokens: ids or texts; n of them give (1 + n_heads) n rows.

        Raises:
            ValueError: an unknown target, one of several tokens, or a text that is not one token.
        """
        self._require_unedited()
        host = self.layer.host
        return virtual_tokens(self.layer, token_target(host, target), token_ids(host, tokens))

    def scores(self, distance: int = 0) -> tuple[ScoreTerm, ...]:
        """Every head's attention scores as terms over (query, key), before the softmax.

        Args:
            distance: query minus key, in positions; only where positions rotate it matters.

        Raises:
            ValueError: a distance below 0 or beyond the context.
        """
        self._require_unedited()
        return score_terms(self.layer.host, distance)

    def top_scores(
        self, name: str, k: int = 10, *, distance: int = 0, block: int = BLOCK
    ) -> PathEntries:
        """The k (query, key) entries of largest magnitude of one score term, streamed.

        Args:
            name: such as "QK0(W_E, W_E)".
            distance: as in `scores`.

        Cost: O(d_vocab^2 d_model) time, O(block^2) memory.

        Raises:
            ValueError: an unknown term, k below 1, or a distance out of range.
        """
        if k < 1:
            raise ValueError(f"`k` must be at least 1, got {k}")
        terms = {term.name: term for term in self.scores(distance)}
        if name not in terms:
            raise ValueError(f"no term {name!r}: give one of {list(terms)}")
        first, second = terms[name].families
        ids, values = largest_products(first, terms[name].matrix, second, k, block=block)
        rows = []
        for places, value in zip(ids.tolist(), values.tolist(), strict=True):
            pairs = list(zip((first, second), places, strict=True))
            kept = [(s, i) for s, i in pairs if s.argument is not None]
            texts = tuple(argument_name(self.layer, s, i) for s, i in kept)
            rows.append(PathEntry(texts, tuple(i for _, i in kept), value))
        words = [
            f"{side} {s.argument}"
            for side, s in zip(("query", "key"), (first, second), strict=True)
            if s.argument
        ]
        return PathEntries(name, "", tuple(words), tuple(rows), False)

    def table(self, k: int | None = 20) -> str:
        """The k terms of largest share as text; all where k is None."""
        rows = sorted(self.terms, key=lambda term: -term.share)[:k]
        width = max(len(term.name) for term in rows)
        lines = [f"{'term':<{width}}  order     norm     size  share  on a prompt"]
        for term in rows:
            lines.append(
                f"{term.name:<{width}}  {term.order:>5} {term.norm:>8.3g} {term.size:>8.3g} "
                f"{term.share:>6.1%}  {term.scale}"
            )
        left = sum(term.share for term in self.terms) - sum(term.share for term in rows)
        if len(rows) < len(self.terms):
            lines.append(f"{len(self.terms) - len(rows)} more terms, {left:.1%}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def _form(self, name: str) -> Form:
        _ = self.term(name)
        self._require_unedited()
        return self.forms[name].form

    def _require_unedited(self) -> None:
        if fingerprint(self.layer.host) != self.provenance.fingerprint:
            raise ValueError(
                "the model's weights have changed since it was expanded: call expand_paths again"
            )

    def _top_logits(
        self,
        name: str,
        form: Form,
        places: tuple[str, ...],
        k: int,
        ids: Int[Tensor, " m"] | None,
        block: int,
    ) -> PathEntries:
        if not isinstance(form, Rows):
            raise ValueError(
                f"the term {name!r} is a function of {len(places)} arguments: give a target to "
                "read it along"
            )
        host = self.layer.host
        unembedding = VirtualSource("W_U", "token", host.W_U.detach().T, None, {})
        eye = torch.eye(host.d_model).to(form.matrix)
        final = self.layer.final.frozen(eye, eye.new_ones(1))
        found, values = largest_logits(form, unembedding, final, k, block)
        families = (*self.forms[name].families, replace(unembedding, name="out"))
        rows = self._labelled(found, values, families, ids)
        return PathEntries(name, "", (*places, "output token"), rows, False)

    def _labelled(
        self,
        found: Int[Tensor, "k axes"],
        values: Tensor,
        families: tuple[VirtualSource, ...],
        ids: Int[Tensor, " m"] | None,
    ) -> tuple[PathEntry, ...]:
        rows = []
        for places, value in zip(found.tolist(), values.tolist(), strict=True):
            axes = []
            for source, i in zip(families, places, strict=True):
                chosen = ids is not None and source.argument == "token" and source.name != "out"
                axes.append(int(ids[i]) if chosen and ids is not None else i)
            texts = [argument_name(self.layer, s, i) for s, i in zip(families, axes, strict=True)]
            rows.append(PathEntry(tuple(texts), tuple(axes), value))
        return tuple(rows)


def _restricted(form: Form, ids: Int[Tensor, " m"] | None) -> Form:
    if ids is None or isinstance(form, Fixed):
        return form
    if isinstance(form, Rows):
        return replace(form, source=form.source.restricted(ids))
    first = form.first.restricted(ids)
    second = first if form.same else form.second.restricted(ids)
    return replace(form, first=first, second=second)
