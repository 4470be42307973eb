"""`editable`: before anything is edited, whether it can be hoped to work, and why not."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.unlearning.answer_rows import accuracy, answer_rows, known_rows, site_logits
from tl_bilinear.unlearning.bases import down_projections
from tl_bilinear.unlearning.contrast import contrastive_directions, moment_overlap
from tl_bilinear.unlearning.forget_set import LEAST_KNOWN, shared_prompts
from tl_bilinear.unlearning.levels import never_learnt_odds
from tl_bilinear.unlearning.moments import halved_moments
from tl_bilinear.unlearning.question import Question, require_questions

COMPONENTS = 8
SEPARATE = 0.6
"""Share of the energy from which on components tell two sets apart; 1/2 is none of it."""


@dataclass(frozen=True)
class LayerSeparation:
    """How far a layer tells forgotten prompts from retained ones."""

    layer: int
    overlap: float
    """Cosine of the second moments of the hidden products, 0 to 1, where answers hang on them."""
    gradient_overlap: float
    """The same of the gradients of the answers by the layer's output."""
    energy_share: float | None
    """Of what the eight most contrastive components of the hidden products hold, the forget set's
    share: 1/2 where nothing separates the sets, 1 where the retained ones have nothing there.
    Components of one half of the wordings, measured on the other, and the mean of both ways: in
    the wordings that they are found in any few prompts have directions of their own. None where a
    set has one wording alone."""

    def __str__(self) -> str:
        share = self.energy_share
        return (
            f"L{self.layer}: overlap {self.overlap:.2f}, of gradients {self.gradient_overlap:.2f}, "
            "forget share of the most contrastive components in other wordings "
            + ("not measured: one wording" if share is None else f"{share:.2f}")
        )


@dataclass(frozen=True)
class Editable:
    """What `editable` found; `verdict` says it in words."""

    forget_known: float
    """Accuracy in the edit's wordings."""
    forget_known_unseen: float | None
    """In wordings that no edit may use; None where no question has one."""
    retain_known: float
    unknown: tuple[Question, ...]
    """Forgotten questions that the model does not know in every wording."""
    shared_prompts: tuple[str, ...]
    """Prompts that both sets hold with the same answer."""
    shared_subjects: tuple[str, ...]
    """Subjects of both sets: what is kept of them hangs on what is forgotten."""
    layers: tuple[LayerSeparation, ...]
    """Empty where the sets are not fit to be compared."""
    problems: tuple[str, ...]
    """What stands against an edit; empty where nothing does."""
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether `fit_edit` would take the sets."""
        return not self.problems

    @property
    def verdict(self) -> str:
        head = "editable" if self.ok else "not editable"
        reasons = "; ".join((*self.problems, *self.warnings))
        return f"{head}: {reasons}" if reasons else f"{head}: known, apart, and separable"

    def __str__(self) -> str:
        lines = [self.verdict]
        unseen = self.forget_known_unseen
        lines.append(
            f"known: forget {self.forget_known:.0%}"
            + ("" if unseen is None else f" (unseen wordings {unseen:.0%})")
            + f", retain {self.retain_known:.0%}"
        )
        lines += [str(each) for each in self.layers]
        return "\n".join(lines)


def editable(model: Any, forget: Sequence[Question], retain: Sequence[Question]) -> Editable:
    """Whether a forget set is known, apart from the retain set, generalises and separates.

    Nothing is edited and nothing fitted. What `fit_edit` would refuse is a problem, what makes
    it costly or incomplete a warning.

    Cost: forward and backward passes of all prompts, and three of O(d_mlp^3) per layer.

    Raises:
        ValueError: an empty set, or prompts that this model cannot read (`answer_rows`).
    """
    host = get_host(model)
    forget = require_questions("forget", forget)
    retain = require_questions("retain", retain)
    shared = tuple(shared_prompts(forget, retain))
    kept = {question.subject for question in retain if question.subject}
    subjects = {q.subject for q in forget if q.subject in kept}
    known, unknown = _known(host, forget)
    has_unseen = any(question.unseen for question in forget)
    unseen = accuracy(host, forget, "unseen") if has_unseen else None
    retained = accuracy(host, retain)
    layers = () if shared else _separations(host, forget, retain)
    problems, warnings = [], []
    if known < LEAST_KNOWN:
        problems.append(f"the model knows {known:.0%} of the forget set: there is little to forget")
    elif unknown:
        warnings.append(f"{len(unknown)} of {len(forget)} forgotten questions are not known whole")
    if shared:
        problems.append(f"{len(shared)} prompts are in both sets with the same answer")
    try:
        never_learnt_odds(host, forget)
    except ValueError as error:
        problems.append(str(error))
    if subjects:
        warnings.append(f"{len(subjects)} subjects are in both sets (near retain)")
    if retained < LEAST_KNOWN:
        warnings.append(f"{retained:.0%} of the retain set is known: it can hold little")
    if unseen is None:
        warnings.append("no question has unseen wordings: forgetting cannot be checked elsewhere")
    elif unseen < LEAST_KNOWN <= known:
        warnings.append(f"{unseen:.0%} is known in unseen wordings: prompts, more than facts")
    shares = {each.layer: each.energy_share for each in layers if each.energy_share is not None}
    tight = [f"L{layer}" for layer, share in shares.items() if share < SEPARATE]
    if tight:
        warnings.append(f"nothing separates the sets in {', '.join(tight)}")
    return Editable(
        known,
        unseen,
        retained,
        unknown,
        shared,
        tuple(sorted(subjects)),
        layers,
        tuple(problems),
        tuple(warnings),
    )


def _known(host: AbstractHost, forget: Sequence[Question]) -> tuple[float, tuple[Question, ...]]:
    rows = answer_rows(host, forget)
    with torch.no_grad():
        known = known_rows(site_logits(host, rows), rows)
    wanting = set(rows.question[~known].tolist())
    return float(known.double().mean()), tuple(forget[i] for i in sorted(wanting))


def _separations(
    host: AbstractHost, forget: Sequence[Question], retain: Sequence[Question]
) -> tuple[LayerSeparation, ...]:
    bases = down_projections(host, range(host.n_layers))
    mine, other = (halved_moments(host, each, bases) for each in (forget, retain))
    found = []
    for layer in (basis.layer for basis in bases):
        # The sets' own sizes say nothing: each moment counts as one.
        pairs = [
            [each[layer].features / each[layer].features.trace() for each in part]
            for part in zip(mine, other, strict=False)
        ]
        found.append(
            LayerSeparation(
                layer,
                moment_overlap(*pairs[0]),
                moment_overlap(mine[0][layer].readings, other[0][layer].readings),
                _share_elsewhere(pairs[1:]) if len(pairs) > 1 else None,
            )
        )
    return tuple(found)


def _share_elsewhere(halves: Sequence[Sequence[Tensor]]) -> float:
    """The forget set's share of the energy in one half of the components of the other half."""
    shares = []
    for here, there in (halves, halves[::-1]):
        forget, retain = here
        readers = contrastive_directions(forget, retain, min(COMPONENTS, len(forget))).readers
        mine, other = (float(((readers @ each) * readers).sum()) for each in there)
        shares.append(mine / (mine + other))
    return fmean(shares)
