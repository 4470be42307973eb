"""The smallest change that meets linear demands, by its dual.

    minimise |x|^2 / 2 + sum_s max(0, demand_s - (J x)_s)^2 / (2 softness)

has x = J^T a with a >= 0 the minimiser of a^T (K + softness I) a / 2 - demand^T a, K = J J^T: as
many unknowns as demands, however many entries x has.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def least_change(
    kernel: Float[Tensor, "site site"],
    demand: Float[Tensor, " site"],
    softness: float,
    *,
    rounds: int = 200,
) -> Float[Tensor, " site"]:
    """The dual weights a >= 0, exactly: a primal-dual active set, each round one Cholesky solve.

    Where the active set cycles, the sets of the last rounds are joined and entries that come out
    negative leave one by one, which ends always.

    Args:
        kernel: symmetric, without negative eigenvalue.
        softness: above 0: how far a demand gives way before the change grows.
    """
    system = kernel.double()
    # What rounding may have made negative: the kernel comes in the model's precision.
    rounding = 1e-7 if kernel.dtype == torch.float32 else 1e-13
    ridge = softness + rounding * float(system.diagonal().mean())
    system = system + ridge * torch.eye(len(system)).to(system)
    demand = demand.double()
    active = demand > 0
    weights = torch.zeros_like(demand)
    seen: set[bytes] = set()
    for _ in range(rounds):
        weights = _solve(system, demand, active)
        slack = system @ weights - demand
        new = torch.where(active, weights > 0, slack < 0)
        if torch.equal(new, active):
            return weights
        key = new.cpu().numpy().tobytes()
        if key in seen:
            break
        seen.add(key)
        active = new
    return _descend(system, demand, weights.clamp_min(0))


def _solve(system: Tensor, demand: Tensor, active: Tensor) -> Tensor:
    weights = torch.zeros_like(demand)
    if bool(active.any()):
        root = torch.linalg.cholesky(system[active][:, active])
        weights[active] = torch.cholesky_solve(demand[active][:, None], root)[:, 0]
    return weights


def _descend(system: Tensor, demand: Tensor, weights: Tensor, rounds: int = 2000) -> Tensor:
    """Lawson and Hanson's active set from a feasible start: the objective falls in every round."""
    active = weights > 0
    for _ in range(rounds):
        aim = _solve(system, demand, active)
        if bool((aim[active] <= 0).any()):
            falling = active & (aim <= 0)
            step = (weights[falling] / (weights[falling] - aim[falling])).min()
            weights = weights + step * (aim - weights)
            active = active & (weights > 1e-12 * weights.max())
            weights = torch.where(active, weights, 0.0)
            continue
        weights = aim
        slack = system @ weights - demand
        slack[active] = 0
        worst = int(slack.argmin())
        if slack[worst] >= -1e-9 * demand.abs().max():
            break
        active[worst] = True
    return weights
