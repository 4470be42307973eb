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
    total, goes_on = torch.ones_like(theta), torch.ones_like(theta[:, :1], dtype=torch.bool)
    smallest = 1e-8 * theta.abs().amax(1, keepdim=True)
    for step in range(alpha.shape[1] - 1):
        previous = beta[:, step - 1 : step] if step else torch.zeros_like(beta[:, :1])
        width = beta[:, step : step + 1]
        # Where a recurrence ends, what follows is rounding; fewer terms bound as well.
        goes_on = goes_on & (width > smallest)
        after = ((theta - alpha[:, step : step + 1]) * now - previous * before) / width
        after = torch.where(goes_on, after, 0.0).clamp(-1e100, 1e100)
        before, now = now, after
        total = total + after.square()
    return 1 / total


def largest_share(
    product: Product, x: Float[Tensor, "site d"], steps: int
) -> Float[Tensor, " site"]:
    """A bound on every |lambda_k| (v_k . x)^2. `steps` products."""
    alpha, beta = lanczos(product, x, steps)
    reach = alpha.abs().amax(1, keepdim=True) + 2 * beta.amax(1, keepdim=True)
    theta = torch.linspace(-1, 1, GRID, dtype=x.dtype, device=x.device) * reach
    between = (theta.abs() * masses(alpha, beta, theta)).amax(1)
    # Isolated eigenvalues peak at Ritz values, too narrowly for a grid; the weight there is stable.
    beside = beta[:, :-1].diag_embed(1)
    ritz, vectors = torch.linalg.eigh(alpha.diag_embed() + beside + beside.mT)
    peaks = (ritz.abs() * vectors[:, 0].square()).amax(1)
    return MARGIN * x.square().sum(1) * torch.maximum(between, peaks)
