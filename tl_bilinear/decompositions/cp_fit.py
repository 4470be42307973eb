"""Fitting a symmetric CP decomposition: alternating least squares on the factors of the tensor.

The loss f(A, C) = |Bs - sum_r c_r (x) a_r (x) a_r|^2 / 2 is quadratic in C and quartic in A.
A sweep

1. solves C exactly, by least squares;
2. solves one input leg by least squares with the other held at A, which gives the step Z = X - A
   (as the legs are one matrix, X itself need not lower f; but Z is -gradient H^-1 / 2 with H
   positive definite, so some of it does);
3. conjugates Z with the last step (a nonlinear conjugate gradient with least squares for its
   preconditioner: De Sterck and Winlaw 2015), and
4. goes to the exact minimum of f along it, a quartic polynomial in the step length.

So f never rises. Each sweep is a few products through the rank axis of B: O(rank_B rank d).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.tensor import BilinearTensor

_DAMPING = 1e-10
_ROUNDING = 1e-15
"""Of |Bs|^2 / 2: a loss, or a change of it, below this is rounding of the terms it is made of."""
_QUIET = 3
_BACKTRACKS = 40


@dataclass(frozen=True, eq=False)
class Fit:
    """One start, fitted."""

    atoms: Float[Tensor, "d_in rank"]
    outputs: Float[Tensor, "d_out rank"]
    losses: tuple[float, ...]
    """f before the first sweep, then after every sweep."""
    converged: bool


class _Problem:
    """The contractions of one tensor with atoms, and the loss."""

    def __init__(self, tensor: BilinearTensor, squared_norm: float):
        self.tensor = tensor
        self.half = squared_norm / 2

    def is_quiet(self, before: float, after: float, tol: float) -> bool:
        return before - after <= tol * after + _ROUNDING * self.half

    def read(self, atoms: Tensor) -> tuple[Tensor, Tensor]:
        return self.tensor.left.T @ atoms, self.tensor.right.T @ atoms

    def values(self, read: tuple[Tensor, Tensor]) -> Tensor:
        """B(a_r) for every atom."""
        return self.tensor.out @ (read[0] * read[1])

    def solve_outputs(self, atoms: Tensor, values: Tensor) -> Tensor:
        """The outputs that minimise f, the shortest of them where atoms are dependent."""
        gram = (atoms.T @ atoms).square()
        return values @ torch.linalg.pinv(gram, rtol=1e-13, hermitian=True)

    def loss(self, atoms: Tensor, outputs: Tensor, values: Tensor) -> float:
        squares = ((atoms.T @ atoms).square() * (outputs.T @ outputs)).sum()
        return max(float(self.half - (outputs * values).sum() + squares / 2), 0.0)

    def half_gradient(
        self, atoms: Tensor, outputs: Tensor, read: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Half the gradient of f in the atoms, and H, the Gram matrix of a leg's least squares."""
        weights = self.tensor.out.T @ outputs
        contracted = self.tensor.left @ (weights * read[1]) + self.tensor.right @ (
            weights * read[0]
        )
        gram = (atoms.T @ atoms) * (outputs.T @ outputs)
        return atoms @ gram - contracted / 2, gram

    def best_step(
        self, atoms: Tensor, outputs: Tensor, read: tuple[Tensor, Tensor], step: Tensor
    ) -> tuple[float, tuple[Tensor, Tensor]]:
        """The t that minimises f(A + t step, C): the best real root of a cubic."""
        moved = self.read(step)
        weights = self.tensor.out.T @ outputs
        first = (weights * (read[0] * moved[1] + read[1] * moved[0])).sum()
        second = (weights * moved[0] * moved[1]).sum()
        metric = outputs.T @ outputs
        cross = atoms.T @ step
        s0, s1, s2 = atoms.T @ atoms, cross + cross.T, step.T @ step
        quartic = torch.stack(
            [
                (metric * s2 * s2).sum() / 2,
                (metric * s1 * s2).sum(),
                (metric * (s1 * s1 + 2 * s0 * s2)).sum() / 2 - second,
                (metric * s0 * s1).sum() - first,
                torch.zeros_like(first),
            ]
        ).tolist()
        roots = np.roots(np.polyder(np.array(quartic)))
        real = [0.0, *(float(root.real) for root in roots if abs(root.imag) < 1e-6 * abs(root))]
        return min(real, key=lambda t: float(np.polyval(quartic, t))), moved


def fit(
    tensor: BilinearTensor,
    squared_norm: float,
    atoms: Float[Tensor, "d_in rank"],
    sweeps: int,
    tol: float,
) -> Fit:
    """From given atoms until f falls by no more than a fraction `tol` in three sweeps running."""
    problem = _Problem(tensor, squared_norm)
    read = problem.read(atoms)
    values = problem.values(read)
    outputs = problem.solve_outputs(atoms, values)
    losses = [problem.loss(atoms, outputs, values)]
    last: tuple[Tensor, Tensor, Tensor] | None = None
    quiet = 0
    while len(losses) <= sweeps and quiet < _QUIET:
        gradient, gram = problem.half_gradient(atoms, outputs, read)
        damped = gram + _DAMPING * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
        newton = -torch.linalg.solve(damped, gradient, left=False)
        step = _conjugate(gradient, newton, last)
        length, moved = problem.best_step(atoms, outputs, read, step)
        trial = atoms + length * step
        reading = (read[0] + length * moved[0], read[1] + length * moved[1])
        sizes = trial.norm(dim=0).clamp_min(torch.finfo(trial.dtype).tiny)
        trial, reading = trial / sizes, (reading[0] / sizes, reading[1] / sizes)
        found = problem.values(reading)
        solved = problem.solve_outputs(trial, found)
        loss = problem.loss(trial, solved, found)
        if loss > losses[-1]:  # rounding: a step at the minimum
            losses.append(losses[-1])
            quiet, last = quiet + 1, None
            continue
        quiet = quiet + 1 if problem.is_quiet(losses[-1], loss, tol) else 0
        last = (gradient * sizes, newton / sizes, step / sizes)
        atoms, read, outputs = trial, reading, solved
        losses.append(loss)
    return Fit(atoms, outputs, tuple(losses), quiet >= _QUIET)


def _conjugate(
    gradient: Tensor, newton: Tensor, last: tuple[Tensor, Tensor, Tensor] | None
) -> Tensor:
    if last is None:
        return newton
    gradient_before, newton_before, step_before = last
    beta = (gradient * (newton - newton_before)).sum() / (gradient_before * newton_before).sum()
    step = newton + beta.clamp_min(0) * step_before
    return step if (step * gradient).sum() < 0 else newton


def fit_sparse(
    tensor: BilinearTensor, squared_norm: float, start: Fit, l1: float, sweeps: int, tol: float
) -> Fit:
    """Minimises f(A, C) + l1 sum |A| over |c_r| <= 1, from the unpenalised fit.

    Each sweep is a proximal gradient step in the atoms (majorised by row sums of H, backtracked
    until the quadratic model is above f), then an exact minimisation over each c_r in its ball.
    """
    problem = _Problem(tensor, squared_norm)
    sizes = start.outputs.norm(dim=0).clamp_min(torch.finfo(start.outputs.dtype).tiny)
    atoms, outputs = start.atoms * sizes.sqrt(), start.outputs / sizes
    read = problem.read(atoms)
    values = problem.values(read)
    smooth = problem.loss(atoms, outputs, values)
    losses = [smooth + l1 * float(atoms.abs().sum())]
    quiet, curvature = 0, 1.0
    while len(losses) <= sweeps and quiet < _QUIET:
        half_gradient, gram = problem.half_gradient(atoms, outputs, read)
        gradient, bound = 2 * half_gradient, 2 * gram.abs().sum(0)
        for _ in range(_BACKTRACKS):
            scale = (curvature * bound).clamp_min(torch.finfo(bound.dtype).tiny)
            target = atoms - gradient / scale
            trial = target.sign() * (target.abs() - l1 / scale).clamp_min(0)
            move = trial - atoms
            read = problem.read(trial)
            values = problem.values(read)
            model = smooth + float((gradient * move).sum() + (scale * move.square()).sum() / 2)
            if problem.loss(trial, outputs, values) <= model + 1e-14 * problem.half:
                break
            curvature *= 2
        curvature = max(curvature / 1.5, 1e-3)
        atoms = trial
        outputs = _outputs_in_ball(atoms, outputs, values)
        smooth = problem.loss(atoms, outputs, values)
        losses.append(smooth + l1 * float(atoms.abs().sum()))
        quiet = quiet + 1 if problem.is_quiet(losses[-2], losses[-1], tol) else 0
    return Fit(atoms, outputs, tuple(losses), quiet >= _QUIET)


def _outputs_in_ball(atoms: Tensor, outputs: Tensor, values: Tensor) -> Tensor:
    """Each c_r in turn at its minimum over |c_r| <= 1: f is isotropic in it."""
    gram = (atoms.T @ atoms).square()
    outputs = outputs.clone()
    for r in range(gram.shape[0]):
        if gram[r, r] > 0:
            free = outputs[:, r] + (values[:, r] - outputs @ gram[:, r]) / gram[r, r]
            outputs[:, r] = free / free.norm().clamp_min(1)
    return outputs
