"""Ridge probes: what a linear or a quadratic readout can still find in activations.

A probe is a ridge regression on one-hot labels, whose penalty is chosen by the closed-form
leave-one-out error on the examples that it is fitted on, and whose accuracy is measured on others.
Beside it stand the same probe on shuffled labels (Hewitt and Liang, 1909.03368: what the probe
finds by itself) and the share of the most frequent label. Nothing here knows a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Degree = Literal[1, 2]

# Penalties in units of the mean eigenvalue of the features' second moment.
RIDGES = tuple(10.0**power for power in range(-6, 3))


@dataclass(frozen=True)
class Probe:
    """Accuracies on held-out examples, 0 to 1."""

    accuracy: float
    controls: tuple[float, ...]
    """The same probe, fitted to and measured on shuffled labels, once for each shuffle."""
    majority: float
    """Of always giving the most frequent label of the fitted examples."""
    degree: Degree
    ridge: float
    """The chosen penalty, in units of the mean eigenvalue of the features' second moment."""
    n_fitted: int
    n_held_out: int

    @property
    def control(self) -> float:
        """The mean of `controls`; NaN without any."""
        return sum(self.controls) / len(self.controls) if self.controls else float("nan")

    @property
    def gain(self) -> float:
        """What is found beyond shuffled labels."""
        return self.accuracy - self.control


def held_out_examples(n: int, share: float = 0.5, seed: int = 0) -> Bool[Tensor, " n"]:
    """A random `share` of n examples, at least one on each side.

    Raises:
        ValueError: fewer than two examples, or a share that is not between 0 and 1.
    """
    if n < 2 or not 0 < share < 1:
        raise ValueError(
            f"{n} examples and a share of {share} were given: at least two examples and a share "
            "between 0 and 1 are needed"
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(n, dtype=torch.bool)
    mask[order[: min(max(round(share * n), 1), n - 1)]] = True
    return mask


def ridge_probe(
    features: Float[Tensor, "example d"],
    labels: Int[Tensor, " example"],
    held_out: Bool[Tensor, " example"],
    *,
    degree: Degree = 1,
    n_controls: int = 5,
    ridges: Sequence[float] = RIDGES,
    seed: int = 0,
) -> Probe:
    """Fit a probe on the examples that are not held out, and measure it on those that are.

    Degree 2 reads all products of two features, beside the features and a constant, through the
    kernel (1 + x . x')^2 of features of mean 0 and mean square norm 1: it is never written out.
    O(n d min(n, d)) for degree 1, O(n^3) for degree 2, n the fitted examples; in float64.

    Args:
        features: activations, one row each.
        labels: what is to be read from them, 0 or above.
        held_out: which examples are not fitted. A label that only they have is never found.
        n_controls: how many times labels are shuffled among all examples.
        ridges: penalties to choose from.
        seed: of the shuffles.

    Raises:
        ValueError: shapes that do not match, nothing to fit or to measure on, features that are not
            finite, negative labels, an unknown degree, or penalties that are not positive.
    """
    _require_examples(features, labels, held_out)
    if degree not in (1, 2):
        raise ValueError(f"`degree` must be 1 (linear) or 2 (quadratic), got {degree!r}")
    if not ridges or not min(ridges) > 0:
        raise ValueError(f"`ridges` must be numbers above 0, got {tuple(ridges)}")
    if n_controls < 0:
        raise ValueError(f"`n_controls` is {n_controls}: give 0 or more")
    labels, held_out = labels.cpu(), held_out.cpu()
    x = features.detach().cpu().double()
    basis = _Basis.of(x[~held_out], x[held_out], degree)
    accuracy, ridge = basis.measured(labels[~held_out], labels[held_out], ridges)
    generator = torch.Generator().manual_seed(seed)
    controls = []
    for _ in range(n_controls):
        mixed = labels[torch.randperm(len(labels), generator=generator)]
        controls.append(basis.measured(mixed[~held_out], mixed[held_out], ridges)[0])
    majority = labels[held_out] == labels[~held_out].mode().values
    return Probe(
        accuracy=accuracy,
        controls=tuple(controls),
        majority=float(majority.double().mean()),
        degree=degree,
        ridge=ridge,
        n_fitted=int((~held_out).sum()),
        n_held_out=int(held_out.sum()),
    )


@dataclass(frozen=True, eq=False)
class _Basis:
    """The fitted examples' kernel matrix, U diag(values) U^T, and the others' kernel times U."""

    left: Float[Tensor, "fitted r"]
    values: Float[Tensor, " r"]
    others: Float[Tensor, "others r"]

    @classmethod
    def of(cls, fitted: Tensor, others: Tensor, degree: Degree) -> "_Basis":
        mean = fitted.mean(0)
        fitted, others = fitted - mean, others - mean
        scale = fitted.square().sum(1).mean().sqrt()
        fitted, others = (each / scale.clamp_min(1e-300) for each in (fitted, others))
        if degree == 1:
            left, roots, right = torch.linalg.svd(fitted, full_matrices=False)
            return cls(left, roots.square(), (others @ right.T) * roots)
        # Centred in the space of products, so that an intercept stands beside it as for degree 1.
        kernel, cross = ((1 + each @ fitted.T).square() for each in (fitted, others))
        columns = kernel.mean(0)
        cross = cross - cross.mean(1, keepdim=True) - columns + columns.mean()
        kernel = kernel - columns - columns[:, None] + columns.mean()
        values, left = torch.linalg.eigh((kernel + kernel.T) / 2)
        return cls(left, values.clamp_min(0), cross @ left)

    def measured(
        self, labels: Tensor, other_labels: Tensor, ridges: Sequence[float]
    ) -> tuple[float, float]:
        """Accuracy on the others at the penalty of least leave-one-out error, and that penalty."""
        n_labels = int(max(labels.max(), other_labels.max())) + 1
        targets = torch.nn.functional.one_hot(labels, n_labels).double()
        mean = targets.mean(0)
        targets = targets - mean
        rotated = self.left.T @ targets
        unit = self.values.sum() / max(len(self.values), 1)
        unit = unit if unit > 0 else torch.ones_like(unit)
        best, chosen, weights = float("inf"), ridges[0], torch.zeros_like(rotated)
        for ridge in ridges:
            kept = self.values / (self.values + ridge * unit)
            leverage = self.left.square() @ kept + 1 / len(labels)
            residual = targets - self.left @ (kept[:, None] * rotated)
            left_out = residual / (1 - leverage).clamp_min(1e-9)[:, None]
            error = float(left_out.square().mean())
            if error < best:
                best, chosen = error, ridge
                weights = rotated / (self.values + ridge * unit)[:, None]
        found = (self.others @ weights + mean).argmax(1)
        return float((found == other_labels).double().mean()), chosen


def _require_examples(features: Tensor, labels: Tensor, held_out: Tensor) -> None:
    n = len(features)
    if features.ndim != 2 or labels.shape != (n,) or held_out.shape != (n,):
        raise ValueError(
            "features [example, d], labels [example] and held_out [example] are needed, got shapes "
            f"{tuple(features.shape)}, {tuple(labels.shape)} and {tuple(held_out.shape)}"
        )
    if not 0 < int(held_out.sum()) < n - 1:
        raise ValueError(
            f"{int(held_out.sum())} of {n} examples are held out: at least two must be left to fit "
            "and one to measure on"
        )
    if not torch.isfinite(features).all():
        raise ValueError("`features` has entries that are not finite")
    if int(labels.min()) < 0:
        raise ValueError(f"labels are 0 or above, got {int(labels.min())}")
