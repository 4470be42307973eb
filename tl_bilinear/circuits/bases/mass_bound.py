"""How large a single eigenmode's share can be, from a few products with Q and no eigenvalues.

Lanczos from x gives polynomials p_j, orthonormal for the weights a_k^2 = (v_k . x)^2 / |x|^2 on
the eigenvalues, and no eigenvalue theta can have a weight above 1 / sum_j p_j(theta)^2 (the
Christoffel function; Golub and Meurant, Matrices, Moments and Quadrature, ch. 2). So
|lambda_k| (v_k . x)^2 is at most the maximum over theta of |theta| |x|^2 / sum_j p_j(theta)^2.
Where x is spread over many eigenvectors, as in layers without structure, a few steps show that no
mode can matter.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

GRID = 2001
MARGIN = 1.25
"""The maximum is taken on a grid and at the Ritz values, where isolated eigenvalues peak."""

Product = Callable[[Tensor], Tensor]


def lanczos(
    product: Product, x: Float[Tensor, "site d"], steps: int
) -> tuple[Float[Tensor, "site step"], Float[Tensor, "site step"]]:
    """(alpha, beta): the recurrences from every x, with full reorthogonalisation.

    Args:
        product: Q x for each site's own Q.
    """
    basis = [x / x.norm(dim=1, keepdim=True).clamp_min(1e-300)]
    alpha, beta = [], []
    for _ in range(steps):
        image = product(basis[-1])
        alpha.append((image * basis[-1]).sum(1))
        known = torch.stack(basis, 1)
        for _ in range(2):
            image = image - torch.einsum(
                "sk,skd->sd", torch.einsum("skd,sd->sk", known, image), known
            )
        beta.append(image.norm(dim=1))
        basis.append(image / beta[-1][:, None].clamp_min(1e-300))
    return torch.stack(alpha, 1), torch.stack(beta, 1)


def masses(
    alpha: Float[Tensor, "site step"],
    beta: Float[Tensor, "site step"],
    theta: Float[Tensor, "site grid"],
) -> Float[Tensor, "site grid"]:
    """The largest weight that an eigenvalue at theta can have, of a whole of one."""
    before, now = torch.zeros_like(theta), torch.ones_like(theta)
    total = torch.ones_like(theta)
    for step in range(alpha.shape[1] - 1):
        previous = beta[:, step - 1 : step] if step else torch.zeros_like(beta[:, :1])
        after = (theta - alpha[:, step : step + 1]) * now - previous * before
        # Where a recurrence ends, its few eigenvalues are all there are: no further bound.
        after = after / beta[:, step : step + 1].clamp_min(
            1e-12 * theta.abs().amax(1, keepdim=True)
        )
        before, now = now, after
        total = (total + after.square()).clamp_max(1e200)
        now, before = now.clamp(-1e100, 1e100), before.clamp(-1e100, 1e100)
    return 1 / total


def largest_shares(
    product: Product, mid: Float[Tensor, "site d"], end: Float[Tensor, "site d"], steps: int
) -> Float[Tensor, " site"]:
    """A bound on every |lambda_k (v_k . mid)(v_k . end)|. `steps` products for each of the two."""
    same = mid is end or bool((mid == end).all())
    runs = [lanczos(product, x, steps) for x in ((mid,) if same else (mid, end))]
    reach = torch.stack([alpha.abs().amax(1) + 2 * beta.amax(1) for alpha, beta in runs]).amax(0)
    theta = torch.linspace(-1, 1, GRID, dtype=mid.dtype, device=mid.device) * reach[:, None]
    theta = torch.cat([theta, *(_ritz(alpha, beta) for alpha, beta in runs)], dim=1)
    found = [masses(alpha, beta, theta) for alpha, beta in runs]
    both = found[0] if same else (found[0] * found[1]).sqrt()
    return MARGIN * mid.norm(dim=1) * end.norm(dim=1) * (theta.abs() * both).amax(1)


def _ritz(alpha: Tensor, beta: Tensor) -> Float[Tensor, "site step"]:
    beside = beta[:, :-1].diag_embed(1)
    return torch.linalg.eigvalsh(alpha.diag_embed() + beside + beside.mT)
