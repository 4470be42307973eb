"""The retain-constrained Gauss-Newton solver on the down-projections of a model of arithmetic.

The margin of a pair moves by sum_l h_l . dW_l g_l, with h_l what W_out of layer l reads and g_l the
margin's gradient by what it writes. Of all changes that move the margins by given amounts the
smallest is dW_l = H_l^T diag(a) G_l, where a solves

    (sum_l (H_l H_l^T) * (G_l G_l^T) + damping) a = amounts.

It asks for a forget margin of `TARGET` and for retain margins no smaller than they were, is
linearised anew after every step, and keeps a step only where it comes closer (Levenberg-Marquardt;
facts/unlearning.md, section 5).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_bilinear.recipes.arithmetic.edit import Edit, Problem, margin_gradients, margins

TARGET = -2.0  # nats: another answer is ahead by as much
N_STEPS = 10


@dataclass(frozen=True, eq=False)
class Fitted:
    """The edit, and the root mean square of what margins miss, before and after every step."""

    edit: Edit
    history: tuple[float, ...]
    rank: int
    """Singular directions of all layers that hold 99 % of the edit's square."""


def fit_weights(
    problem: Problem,
    fitted: Bool[Tensor, "operation pair"],
    *,
    target: float = TARGET,
    n_steps: int = N_STEPS,
    damping: float = 1e-2,
) -> Fitted:
    """Fit an edit of W_out on some of the pairs that the model knows.

    A step takes O(n^2 d + n^3) for n pairs; the change of the weights is never written out before
    it is summed.

    Args:
        fitted: which pairs; those that the model does not know are left out.
        target: of the forget margins, in nats.
        damping: of the first step, in units of the mean diagonal of what is solved.
    """
    chosen = problem.known & fitted
    before = margins(problem.run().logits, problem.task)
    goals = before.clone()
    goals[problem.forget] = target
    weights = {
        layer: torch.zeros_like(problem.model.get_parameter(f"mlps.{layer}.W_out"))
        for layer in range(problem.model.config.n_layers)
    }
    missed = _missing(problem, Edit(weights=weights), goals, chosen)
    history = [float(missed.square().mean().sqrt())]
    for _ in range(n_steps):
        hidden, gradients = _rows(problem, Edit(weights=weights), chosen)
        kernel = sum((h @ h.T) * (g @ g.T) for h, g in zip(hidden, gradients, strict=True))
        assert isinstance(kernel, Tensor)
        unit = kernel.diagonal().mean() * torch.eye(len(kernel)).to(kernel)
        for _ in range(6):
            solved = torch.linalg.solve(kernel + damping * unit, missed)
            step = {
                layer: (weights[layer] + (h * solved[:, None]).T @ g).to(weights[layer])
                for layer, (h, g) in enumerate(zip(hidden, gradients, strict=True))
            }
            now = _missing(problem, Edit(weights=step), goals, chosen)
            if now.norm() < missed.norm():
                break
            damping *= 4
        else:
            break  # no step comes closer
        weights, missed = step, now
        damping = max(damping / 3, 1e-6)
        history.append(float(missed.square().mean().sqrt()))
        if history[-1] < 0.05 or history[-1] > 0.97 * history[-2]:
            break
    return Fitted(Edit(weights=weights), tuple(history), _rank(weights))


def _missing(problem: Problem, edit: Edit, goals: Tensor, chosen: Tensor) -> Float[Tensor, " row"]:
    """How far each chosen margin is on the wrong side of its goal: forget above, retain below."""
    gap = goals - margins(problem.run(edit).logits, problem.task)
    gap[problem.forget] = gap[problem.forget].clamp_max(0)
    gap[problem.retain] = gap[problem.retain].clamp_min(0)
    return gap[chosen].double()


def _rows(
    problem: Problem, edit: Edit, chosen: Tensor
) -> tuple[list[Float[Tensor, "row d_mlp"]], list[Float[Tensor, "row d"]]]:
    """What W_out of each layer reads, and the margins' gradients by what it writes."""
    done, _, gradients = margin_gradients(problem.model, problem.task, edit)
    hidden = []
    for each in done.hidden:
        rows = torch.stack([done.of_task(each.detach(), op) for op in range(len(chosen))])
        hidden.append(rows[chosen].double())
    return hidden, [each[chosen].double() for each in gradients["outputs"]]


def _rank(weights: dict[int, Tensor]) -> int:
    energies = torch.cat(
        [torch.linalg.svdvals(each.double()).square() for each in weights.values()]
    )
    shares = energies.sort(descending=True).values.cumsum(0) / energies.sum().clamp_min(1e-300)
    return int((shares < 0.99).sum()) + 1
