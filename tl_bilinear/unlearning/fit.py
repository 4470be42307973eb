"""`fit_edit`: the smallest edit of some layers that makes a model forget some answers."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.checkpoints.bundled import bundled_stories
from tl_bilinear.decompositions import Mode
from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.layers import checked_layers
from tl_bilinear.hosts.provenance import provenance
from tl_bilinear.unlearning.bases import (
    BasisName,
    contrastive_features,
    down_projections,
    eigenmode_amplitudes,
    hidden_units,
    with_amplitudes,
)
from tl_bilinear.unlearning.contexts import in_contexts
from tl_bilinear.unlearning.crossings import CROSSINGS, require_count
from tl_bilinear.unlearning.demands import CLEARANCE, make_demands
from tl_bilinear.unlearning.descent import Coordinates, Fit, FitStep, is_met
from tl_bilinear.unlearning.edit import Edit, LayerChange
from tl_bilinear.unlearning.forget_set import require_forgettable
from tl_bilinear.unlearning.guards import Crossed, crossed_demands, guard
from tl_bilinear.unlearning.layer_basis import LayerBasis, WhitenedBasis, whiten
from tl_bilinear.unlearning.levels import never_learnt_odds
from tl_bilinear.unlearning.low_rank import cut
from tl_bilinear.unlearning.moments import answer_moments
from tl_bilinear.unlearning.question import Question
from tl_bilinear.unlearning.text_metric import LayerMoments, TextKL, text_moments, token_rows

RANK = 8
WHOLE = ("rank", "features", "max_steps")
LEAST_FEATURES = 12
N_TEXTS = 60
LEAST_TERM = 1e-6
"""Of a layer's largest term, in units of the metric: smaller ones are no part of its rank."""
KL_EVERY = 3
"""Batches of the texts of which one is read for the trust region; the metric reads them all."""


def fit_edit(
    model: Any,
    forget: Sequence[Question],
    retain: Sequence[Question],
    basis: BasisName = "contrastive",
    *,
    texts: Sequence[str] | None = None,
    modes: Sequence[Mode] = (),
    rank: int = RANK,
    features: int | None = None,
    layers: Sequence[int] | None = None,
    target: float | Float[Tensor, " site"] | None = None,
    floor: float = 2.0,
    clearance: float = CLEARANCE,
    contexts: int = 2,
    crossings: int = CROSSINGS,
    kl_limit: float = 1.0,
    damping: float = 1e-2,
    max_steps: int = 40,
    seed: int = 0,
    progress: Callable[[FitStep], None] | None = None,
) -> Edit:
    """Fit an edit; the model is left as it is until `edit.apply_(model)`.

    The log-odds of forgotten answers go down to those of answers that were never learnt, those of
    retained answers stay above a floor, and of all edits that do so it is the one that changes the
    distribution on general text least, to second order.

    Args:
        forget, retain: what must go and what must stay, in the wordings that edits may use.
        basis: "contrastive" (changes of W_out that read only what tells forgotten prompts from
            retained ones and from text, among the hidden products), "down_projection" (any
            change of W_out), "units" (one amplitude per hidden unit) or "eigenmodes" (one
            amplitude per mode of `modes`).
        texts: general text that is to stay as it is; by default bundled stories, which suit the
            bundled models only.
        rank: terms per layer at most, for "down_projection" and "contrastive".
        features: contrastive components per layer that an edit may read, of "contrastive": fewer
            generalise better to other wordings, and change more of the rest. By default half of
            d_model, and 12 at least.
        layers: which ones may be edited; all by default.
        target: log-odds of the answers' tokens to end at, one number or, with contexts=0, one per
            site of `answer_rows`; by default the level of subjects that the model has never met.
        floor: log-odds that retained answers may fall to (2.0: probability 0.88).
        clearance: logits by which a forgotten answer must lose in the edit's wordings, so that it
            loses in others as well.
        contexts: in how many contexts drawn from the texts each wording is asked as well: edits
            tied to a few prompts leak elsewhere.
        crossings: wordings at most that are put together for each question from the beginning of
            one of its own and the end of another: answers that come within `clearance` there are
            moved as well once all else is met, where other wordings gain more by it than text
            loses (`Edit.message` says so). 0 for none; it takes a `subject` and two wordings.
        kl_limit: nats per token, on a third of the texts, beyond which no step is taken; they are
            read where a hundredth of it is foreseen, and at the end.
        damping: of the metric, in units of its factors' mean eigenvalue.
        max_steps: steps at most; crossed wordings may take up to 48 more.
        progress: called with every step.

    Cost: a few tens of linearisations. One takes a forward and some backward
    passes of all rows, and O(sites^2 parameters) or O(sites^2 pos^2 d) for the kernel.

    Raises:
        ValueError: empty or overlapping sets, tokens that the model lacks, a forget set that the
            model does not know, a basis without its modes, numbers out of range.
    """
    begun = time.perf_counter()
    host = get_host(model)
    features = max(host.d_model // 2, LEAST_FEATURES) if features is None else features
    forget, retain = require_forgettable(host, forget, retain)
    plan = _Plan(
        host,
        basis,
        tuple(modes),
        tuple(sorted(checked_layers(host, layers))),
        features,
        damping,
        seed,
    )
    _require_numbers(
        rank=rank, features=features, max_steps=max_steps, damping=damping, kl_limit=kl_limit
    )
    require_count(crossings)
    texts = _texts(texts)
    batches = token_rows(host, texts)
    asked = in_contexts(forget, texts, contexts, seed, host.fits), retain
    level = never_learnt_odds(host, asked[0], seed=seed) if target is None else target
    demands = make_demands(host, *asked, level, floor=floor, clearance=clearance)
    fit = Fit(host, demands, TextKL(host, batches[::KL_EVERY]), kl_limit, progress)
    whitened = plan.whitened(asked, batches)
    x: Coordinates = {
        layer: torch.zeros(each.basis.shape, dtype=torch.float64, device=host.device)
        for layer, each in whitened.items()
    }
    low = basis in ("down_projection", "contrastive")
    most = rank if low else None
    x, step = fit.descend(whitened, x, max_steps, most)
    said = None
    if is_met(step) and crossings:
        others = crossed_demands(
            host, demands, forget, retain, crossings, clearance=clearance, seed=seed
        )
        if others is not None:
            x, step, said = guard(fit, whitened, x, step, others, most)
    changes = _of_rank(whitened, x, rank) if low else _from_pairs(whitened, x)
    return Edit(
        changes=tuple(changes),
        basis=basis,
        met=is_met(step),
        message=_message(step, said),
        history=tuple(fit.history),
        last=step,
        seconds=time.perf_counter() - begun,
        provenance=provenance(host, (), "none"),
        modes=with_amplitudes(modes, {layer: w.theta(x[layer]) for layer, w in whitened.items()})
        if basis == "eigenmodes"
        else (),
    )


@dataclass(frozen=True, eq=False)
class _Plan:
    host: AbstractHost
    name: BasisName
    modes: tuple[Mode, ...]
    layers: tuple[int, ...]
    features: int
    damping: float
    seed: int

    def __post_init__(self):
        if self.name not in get_args(BasisName):
            raise ValueError(f"`basis` must be one of {get_args(BasisName)}, got {self.name!r}")
        if (self.name == "eigenmodes") != bool(self.modes):
            raise ValueError(
                'basis "eigenmodes" takes `modes` (of find_modes), and no other basis does'
            )
        elsewhere = sorted({mode.layer for mode in self.modes} - set(self.layers))
        if elsewhere:
            raise ValueError(f"`modes` are of layers {elsewhere}, which `layers` leave out")

    def whitened(self, asked: Any, batches: Any) -> dict[int, WhitenedBasis]:
        moments = self._moments(asked, batches)
        return {
            basis.layer: whiten(basis, each.features, each.readings, self.damping)
            for basis, each in moments
        }

    def _moments(
        self, asked: Sequence[Sequence[Question]], batches: Any
    ) -> list[tuple[LayerBasis, LayerMoments]]:
        host, layers = self.host, self.layers
        if self.name == "contrastive":
            return self._contrastive(asked, batches)
        if self.name == "eigenmodes":
            bases = eigenmode_amplitudes(host, self.modes)
        elif self.name == "units":
            bases = hidden_units(host, layers)
        else:
            bases = down_projections(host, layers)
        moments = text_moments(host, batches, bases, self.seed)
        return [(basis, moments[basis.layer]) for basis in bases]

    def _contrastive(
        self, asked: Sequence[Sequence[Question]], batches: Any
    ) -> list[tuple[LayerBasis, LayerMoments]]:
        whole = down_projections(self.host, self.layers)
        mine, near = (answer_moments(self.host, each, whole) for each in asked)
        far = text_moments(self.host, batches, whole, self.seed)
        # Retained prompts ask the same of other subjects: what differs is who is asked about.
        bases = contrastive_features(
            [_shape(mine[layer].features) for layer in self.layers],
            [_shape(near[layer].features) + _shape(far[layer].features) for layer in self.layers],
            self.layers,
            self.host.d_model,
            self.features,
        )
        return [(basis, far[basis.layer].read_by(basis)) for basis in bases]


def _shape(moment: Tensor) -> Tensor:
    """A moment without its size: sets of different sizes and weights count alike."""
    return moment / moment.trace()


def _of_rank(bases: Mapping[int, WhitenedBasis], x: Coordinates, rank: int) -> list[LayerChange]:
    changes = []
    for layer, each in bases.items():
        left, right = cut(x[layer], rank)
        sizes = left.norm(dim=0)
        kept = sizes >= LEAST_TERM * sizes.max()  # the first at least
        left, right = left[:, kept], right[kept]
        changes.append(LayerChange(layer, *each.factors(left, right)))
    return changes


def _from_pairs(bases: Mapping[int, WhitenedBasis], x: Coordinates) -> list[LayerChange]:
    return [
        LayerChange(layer, *each.basis.factors(each.theta(x[layer])), each.basis.squares)
        for layer, each in bases.items()
    ]


def _message(step: FitStep, crossed: Crossed | None) -> str:
    if is_met(step) and crossed is not None:
        return f"every demand is met; {crossed.message}"
    if is_met(step):
        return "every demand is met"
    return (
        f"stopped short: forgotten answers are up to {step.forget_shortfall:.2f} logits above "
        f"their level ({step.forget_known:.0%} still known), retained ones up to "
        f"{max(step.retain_shortfall, 0):.2f} below their floor ({step.retain_known:.1%} known). "
        "Allow more rank, layers or kl_limit, or a milder target"
    )


def _texts(texts: Sequence[str] | None) -> tuple[str, ...]:
    if texts is None:
        return bundled_stories()[:N_TEXTS]
    if isinstance(texts, str) or not texts:
        raise ValueError("`texts` must be several strings: general text that is to stay as it is")
    return tuple(texts)


def _require_numbers(**numbers: float) -> None:
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"`{name}` must be above 0, got {value}")
        if name in WHOLE and value != int(value):
            raise ValueError(f"`{name}` must be a whole number, got {value}")
