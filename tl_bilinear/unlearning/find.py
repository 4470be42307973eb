"""`find_modes`: which eigenmodes carry answers that are to be forgotten, and not those to be kept.

A mode (layer, u, lambda, v) adds lambda (v.x)^2 along u to its layer's output; an answer's
log-odds change with that output by their gradient g. To first order the mode's share of the answer
is sum_pos lambda (v.x)^2 (u.g) / |u|^2. Modes are ordered by the share of the energy (mean square
of these) that the forgotten answers have.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, overload

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.decompositions import Mode, eigendecompose
from tl_bilinear.decompositions.mode import stacked
from tl_bilinear.dictionary import Dictionary
from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.layers import checked_layers
from tl_bilinear.hosts.provenance import Provenance, provenance
from tl_bilinear.unlearning.answer_rows import AnswerRows, answer_rows
from tl_bilinear.unlearning.forget_set import require_forgettable
from tl_bilinear.unlearning.layer_basis import LayerBasis, LayerGradients
from tl_bilinear.unlearning.question import Question
from tl_bilinear.unlearning.site_gradients import log_odds_gradients

Directions = Literal["gradient", "unembedding", "mean difference"]

N_DIRECTIONS = 4


@dataclass(frozen=True, eq=False)
class FoundModes(Sequence[Mode]):
    """Modes in order of `shares`, falling."""

    modes: tuple[Mode, ...]
    forget: Float[Tensor, " mode"]
    """Mean share of a forgotten answer's log-odds, in logits: above 0 the mode speaks for it."""
    forget_energy: Float[Tensor, " mode"]
    """Mean square of the shares of forgotten answers."""
    retain_energy: Float[Tensor, " mode"]
    shares: Float[Tensor, " mode"]
    """forget_energy / (forget_energy + retain_energy), 0 to 1."""
    directions: str
    provenance: Provenance

    def top(self, k: int) -> list[tuple[Mode, float]]:
        """The first k with their shares of the energy."""
        return list(zip(self.modes[:k], self.shares[:k].tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.modes)

    @overload
    def __getitem__(self, index: int) -> Mode: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Mode, ...]: ...
    def __getitem__(self, index: int | slice) -> Mode | tuple[Mode, ...]:
        return self.modes[index]


def find_modes(
    model: Any,
    forget: Sequence[Question],
    retain: Sequence[Question],
    *,
    k: int = 64,
    directions: Directions | Dictionary = "gradient",
    n_directions: int = N_DIRECTIONS,
    layers: Sequence[int] | None = None,
) -> FoundModes:
    """The k eigenmodes with the largest forget share, of all layers and several directions each.

    Args:
        forget, retain: asked in the wordings that edits may use.
        directions: where u comes from, `n_directions` per layer. "gradient": the directions along
            which the forgotten answers' gradients differ most from the retained ones' (leading
            components); "unembedding": what reads the answers' tokens off the stream, against the
            mean of the retained answers'; "mean difference": leading components of what the layer
            writes on forgotten prompts, less its mean on retained ones; a Dictionary of this
            layer's output or of a stream behind it: decoder rows of the features whose activation
            differs most (its `hook_name` says where).
        layers: which ones; all by default.

    Cost: a forward and some backward passes of all prompts, and O(d^3) per direction.

    Raises:
        ValueError: as `fit_edit` for the sets; gated MLPs, which have no modes of their own
            (`output_modes` is for any); an unknown kind of direction; a dictionary of a stream
            before a layer's output; k or n_directions below 1; no layer, or one that is not there.
    """
    host = get_host(model)
    if k < 1 or n_directions < 1:
        raise ValueError(f"`k` and `n_directions` must be at least 1, got {k} and {n_directions}")
    if not isinstance(directions, Dictionary) and directions not in get_args(Directions):
        raise ValueError(
            f"`directions` must be one of {get_args(Directions)} or a Dictionary, got "
            f"{directions!r}"
        )
    forget, retain = require_forgettable(host, forget, retain)
    chosen = sorted(checked_layers(host, layers))
    tensors = {layer: host.mlp_tensor(layer) for layer in chosen}  # refuses gated MLPs
    seen = _Seen(host, forget, retain, chosen)
    candidates: list[Mode] = []
    for layer in chosen:
        for index, u in enumerate(seen.directions(layer, directions, n_directions)):
            pairs = eigendecompose(tensors[layer], u.to(tensors[layer].out), gauge="traceless")
            candidates += [
                Mode(layer, u, float(value), vector, f"L{layer} {_name(directions)} {index}")
                for value, vector in zip(pairs.eigenvalues, pairs.eigenvectors, strict=True)
            ]
    if not candidates:
        raise ValueError("no direction was found: the dictionary has no feature that differs")
    return seen.ranked(candidates, k, _name(directions))


@dataclass(eq=False)
class _Seen:
    host: AbstractHost
    forget: tuple[Question, ...]
    retain: tuple[Question, ...]
    layers: list[int]

    def __post_init__(self):
        width = self.host.d_model
        bases = [LayerBasis(layer, width, width, squares=True) for layer in self.layers]
        zero = [(basis, torch.zeros(basis.shape)) for basis in bases]
        self.rows = tuple(answer_rows(self.host, q) for q in (self.forget, self.retain))
        self.found: tuple[Mapping[int, LayerGradients], ...] = tuple(
            log_odds_gradients(self.host, rows, zero)[1] for rows in self.rows
        )

    def directions(self, layer: int, kind: Directions | Dictionary, n: int) -> Tensor:
        """[direction, d_model], no longer than `n`, in float64."""
        if isinstance(kind, Dictionary):
            return _dictionary_directions(self.host, self.rows, kind, layer, n)
        if kind == "gradient":
            mine, other = (each[layer].gradients.double().flatten(0, 1) for each in self.found)
            difference = mine.mT @ mine / len(mine) - other.mT @ other / len(other)
            values, vectors = torch.linalg.eigh(difference)
            return vectors.mT.flip(0)[:n][values.flip(0)[:n] > 0]
        if kind == "unembedding":
            mine, other = (_readouts(self.host, rows) for rows in self.rows)
            return _leading(torch.unique(mine, dim=0) - other.mean(0), n)
        site = self.host.mlp_out_site(layer)
        mine, other = (_written(self.host, rows, site) for rows in self.rows)
        return _leading(mine - other.mean(0), n)

    def ranked(self, modes: list[Mode], k: int, name: str) -> FoundModes:
        forget, retain = (
            torch.cat([self._shares(found, layer, modes) for layer in self.layers], 1)
            for found in self.found
        )
        f, r = forget.square().mean(0), retain.square().mean(0)
        shares = f / (f + r).clamp_min(torch.finfo(torch.float64).tiny)
        # What hardly says anything of either has no share worth the name.
        heard = (f + r) > 1e-6 * float((f + r).max())
        order = torch.where(heard, shares, -1.0).argsort(descending=True)[:k]
        order = order[heard[order]]
        return FoundModes(
            tuple(modes[i] for i in order.tolist()),
            forget.mean(0)[order],
            f[order],
            r[order],
            shares[order],
            name,
            provenance(self.host, ("gradients of the answers",), "traceless"),
        )

    def _shares(
        self, found: Mapping[int, LayerGradients], layer: int, modes: list[Mode]
    ) -> Float[Tensor, "site mode"]:
        mine = [mode for mode in modes if mode.layer == layer]
        seen = found[layer]
        rows = seen.values.double()
        if not mine:
            return rows.new_zeros(len(seen.site_row), 0)
        vectors = stacked(mine, "eigenvector")
        values = torch.tensor([mode.eigenvalue for mode in mine], dtype=torch.float64).to(rows)
        u = stacked(mine, "direction")
        contributions = (rows @ vectors.mT) ** 2 * values
        along = seen.gradients.double() @ (u / u.square().sum(1, keepdim=True)).mT
        return (contributions[seen.site_row] * along).sum(1)


def _readouts(host: AbstractHost, rows: AnswerRows) -> Float[Tensor, "site d_model"]:
    labels = rows.label.to(host.device)
    return host.fold_readout(host.W_U.detach().double()[:, labels].mT)


def _written(host: AbstractHost, rows: AnswerRows, site: str) -> Float[Tensor, "site width"]:
    """What stands at a hook where the answers are predicted."""
    _, values = host.read(rows.tokens, [site])
    return values[site].double()[rows.site_row, rows.site_pos]


def _leading(vectors: Float[Tensor, "row d"], n: int) -> Float[Tensor, "direction d"]:
    _, sizes, directions = torch.linalg.svd(vectors, full_matrices=False)
    return directions[:n][sizes[:n] > 1e-9 * sizes[0]]


def _dictionary_directions(
    host: AbstractHost, rows: Sequence[AnswerRows], dictionary: Dictionary, layer: int, n: int
) -> Float[Tensor, "direction d_model"]:
    site = dictionary.hook_name
    if not site or dictionary.d_in != host.d_model:
        raise ValueError(
            f"{dictionary!r} cannot give directions: a dictionary of this model's stream is "
            f"needed, with {host.d_model} inputs and its hook_name"
        )
    if not _behind(site, layer):
        raise ValueError(
            f"{dictionary!r} reads {site}, which is before layer {layer} writes: give `layers` "
            "whose output is in it"
        )
    mine, other = (
        dictionary.encode(_written(host, each, site).to(dictionary.encoder)).double().mean(0)
        for each in rows
    )
    difference = mine - other
    chosen = difference.topk(min(n, len(difference))).indices
    return dictionary.decoder.double()[chosen[difference[chosen] > 0]]


def _behind(site: str, layer: int) -> bool:
    """Whether what a layer's MLP writes is in the stream at a hook."""
    found = re.match(r"blocks\.(\d+)\.(.*)", site)
    if found is None:
        return site.startswith("ln_final")
    block, name = int(found[1]), found[2]
    own = ("hook_mlp_out", "mlp.hook_out", "hook_resid_post", "hook_out")
    return block > layer or (block == layer and name in own)


def _name(directions: Directions | Dictionary) -> str:
    return directions if isinstance(directions, str) else f"dictionary {directions.hook_name}"
