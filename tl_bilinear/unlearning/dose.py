"""How much of an edit is needed: the edit scaled, with the points that nothing beats."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tl_bilinear.unlearning.answer_rows import accuracy, answer_rows, site_logits
from tl_bilinear.unlearning.metrics import mean_scores, score_rows, score_texts
from tl_bilinear.unlearning.question import Question

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


@dataclass(frozen=True)
class DosePoint:
    """The model with `scale` times the edit's change of the weights."""

    scale: float
    forget_accuracy: float
    forget_nll: float
    retain_accuracy: float
    kl: float
    on_front: bool = False
    """No other dose has less forget accuracy at no more cost, or less cost at no more of it."""

    @property
    def cost(self) -> float:
        """1 - retained accuracy + KL per token."""
        return 1 - self.retain_accuracy + self.kl


def dose_curve(
    original: Any,
    edited: Any,
    forget: Sequence[Question],
    retain: Sequence[Question],
    texts: Sequence[str],
    scales: Sequence[float] = SCALES,
) -> tuple[DosePoint, ...]:
    """original + scale * (edited - original) for every scale; weights new in `edited` begin at 0.

    Neither model is changed.

    Raises:
        ValueError: the edit changed a weight's shape (as extra neurons do): it has no scale.
    """
    before = {name: p.detach() for name, p in original.named_parameters()}
    mixed = copy.deepcopy(edited)
    after = {name: p.detach() for name, p in edited.named_parameters()}
    for name, weight in after.items():
        if name in before and before[name].shape != weight.shape:
            raise ValueError(
                f"the edit changed the shape of {name} from {list(before[name].shape)} to "
                f"{list(weight.shape)}: it cannot be scaled. Of `modes`, the trials are the dose"
            )
    points = []
    for scale in scales:
        with torch.no_grad():
            for name, parameter in mixed.named_parameters():
                start = before.get(name, torch.zeros_like(after[name]))
                # Exactly the edited model's weights at scale 1, exactly the original's at 0.
                change = after[name] - start
                parameter.copy_(after[name] if scale == 1 else start + scale * change)
        points.append(_point(mixed, original, scale, forget, retain, texts))
    return pareto(points)


def pareto(points: Sequence[DosePoint]) -> tuple[DosePoint, ...]:
    """The points, those that no other dominates in (forget accuracy, cost) marked."""

    def dominated(point: DosePoint) -> bool:
        return any(
            other.forget_accuracy <= point.forget_accuracy
            and other.cost <= point.cost
            and (other.forget_accuracy < point.forget_accuracy or other.cost < point.cost)
            for other in points
        )

    return tuple(replace(point, on_front=not dominated(point)) for point in points)


def _point(
    model: Any,
    original: Any,
    scale: float,
    forget: Sequence[Question],
    retain: Sequence[Question],
    texts: Sequence[str],
) -> DosePoint:
    rows = answer_rows(model, forget)
    with torch.no_grad():
        scores = mean_scores(score_rows(site_logits(model, rows), rows))
    return DosePoint(
        scale=scale,
        forget_accuracy=scores.accuracy,
        forget_nll=scores.nll,
        retain_accuracy=accuracy(model, retain),
        kl=score_texts(model, original, texts).kl,
    )
