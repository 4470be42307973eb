"""Eigendecomposition of the interaction matrix of one output direction.

    u . B(x) = x^T Q(u) x = sum_k lambda_k (v_k . x)^2

(2410.08417 section 3.2). Eigenpairs are ordered by |lambda|, descending; the sign of an
eigenvector is fixed by its entry of largest magnitude, which is positive.

After RMSNorm |x|^2 is (up to the norm's epsilon) constant, so Q and Q + a I are the same
function up to a constant: `gauge="traceless"` takes out a = tr Q / d. A spectrum is only
comparable within one gauge, so a result carries the name of its own.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.decompositions.arguments import is_finite, not_finite, require_interaction
from tl_bilinear.decompositions.eigendecomposition import Eigendecomposition as Eigendecomposition
from tl_bilinear.decompositions.eigendecomposition import Gauge as Gauge
from tl_bilinear.decompositions.eigensolvers import Eigenproblem, Pairs, solve, solve_largest
from tl_bilinear.tensor import BilinearTensor

Method = Literal["auto", "eigh", "krylov"]

WORK_BYTES = 2**28


def eigendecompose(
    tensor: BilinearTensor,
    u: Float[Tensor, "*batch d_out"],
    k: int | None = None,
    *,
    gauge: Gauge = "none",
    method: Method = "auto",
    dtype: torch.dtype = torch.float64,
    tolerance: float | None = None,
    work_bytes: int = WORK_BYTES,
) -> Eigendecomposition:
    """Eigenpairs of Q(u) by |lambda|.

    "eigh" computes all eigenvalues: O(rank d^2 + d^3) per direction, or O(rank^3 + rank d k)
    after one QR decomposition for all directions where 4 rank <= d. "krylov" computes k pairs by a
    block Krylov method, O(rank d) per product, with their residuals; it is quick where the
    |lambda| fall off, and slow where there is no gap. "auto" takes Krylov where it promises to be
    cheaper, gives it up for eigh where it does not converge, and says so in `.method`.

    Beyond the factors and the result itself, memory is the larger of `work_bytes` and what one
    direction needs, about 8 d^2 numbers: directions are worked on in chunks.

    Args:
        tensor: both legs must read one input.
        u: output directions; they need not be normalised (lambda scales with u).
        k: how many pairs to keep; all d_in where it is None.
        gauge: "none" decomposes Q as it stands, "traceless" decomposes Q - (tr Q / d) I.
        dtype: of the computation, float64 or float32; the result has the tensor's.
        tolerance: of the Krylov method: residuals in units of their own |lambda|. By default 1e-8
            for a float64 tensor in float64 and 1e-5 else; the eigenvalue's error is about its
            square. Below what rounding allows nothing converges and eigh takes over.
        work_bytes: memory that chunks of directions may take.

    Gradients flow through "eigh", which "auto" takes where they are asked for.

    Raises:
        ValueError: a wrong shape of `u`, a direction that is zero, numbers that are not finite,
            `k` out of range, an unknown option, or legs that read different inputs.
    """
    _check(tensor, u, k, gauge, method, dtype, tolerance)
    wants_gradient = torch.is_grad_enabled() and any(
        each.requires_grad for each in (tensor.left, tensor.right, tensor.out, u)
    )
    if wants_gradient and method == "krylov":
        raise ValueError(
            'gradients flow through `method="eigh"` only: use it, or decompose in torch.no_grad()'
        )
    batch = u.shape[:-1]
    directions = u.to(tensor.device, dtype).reshape(-1, tensor.d_out)
    problem = Eigenproblem(
        tensor=tensor,
        weights=directions @ tensor.out.to(dtype),
        gauge=gauge,
        work_bytes=work_bytes,
        differentiable=wants_gradient,
    )
    if not is_finite(problem.weights):
        raise not_finite()
    if tolerance is None:
        exact = tensor.dtype == dtype == torch.float64
        tolerance = 1e-8 if exact else 1e-5
    if method == "eigh" or wants_gradient or k is None:
        pairs = solve(problem, tensor.d_in if k is None else k)
        if method == "krylov":
            pairs = pairs.named("eigh (all pairs were asked for: `k` is None)")
    else:
        pairs = solve_largest(problem, k, tolerance, must=method == "krylov")
    return _result(tensor, u, gauge, problem, pairs, batch)


def _result(
    tensor: BilinearTensor,
    u: Tensor,
    gauge: Gauge,
    problem: Eigenproblem,
    pairs: Pairs,
    batch: torch.Size,
) -> Eigendecomposition:
    if not is_finite(pairs.values):
        raise not_finite()
    dtype = tensor.dtype
    largest = pairs.vectors.gather(-1, pairs.vectors.abs().argmax(-1, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0)
    # In place where nothing else holds the vectors: they are the largest thing here.
    vectors = pairs.vectors * signs if problem.differentiable else pairs.vectors.mul_(signs)
    count = pairs.values.shape[-1]
    return Eigendecomposition(
        eigenvalues=pairs.values.to(dtype).reshape(*batch, count),
        eigenvectors=vectors.to(dtype).reshape(*batch, count, tensor.d_in),
        direction=u.to(tensor.device, dtype),
        gauge=gauge,
        trace_shift=problem.shift.to(dtype).reshape(batch),
        residuals=pairs.residuals.to(dtype).reshape(*batch, count),
        by_eigh=pairs.by_eigh.reshape(batch),
        method=pairs.method,
        left_out=lambda: pairs.left_out(problem).reshape(batch),
    )


def _check(
    tensor: BilinearTensor,
    u: Tensor,
    k: int | None,
    gauge: str,
    method: str,
    dtype: torch.dtype,
    tolerance: float | None,
) -> None:
    if not tensor.shared_input:
        raise ValueError(
            f"this tensor reads two different spaces (left {tensor.d_left}, right "
            f"{tensor.d_right}), so Q(u) has no eigenvectors: use singular_decompose"
        )
    require_interaction(u, tensor, dtype)
    if k is not None and not 1 <= k <= tensor.d_in:
        raise ValueError(f"`k` must be between 1 and d_in = {tensor.d_in}, got {k}")
    if gauge not in ("none", "traceless"):
        raise ValueError(f'`gauge` must be "none" or "traceless", got {gauge!r}')
    if method not in ("auto", "eigh", "krylov"):
        raise ValueError(f'`method` must be "auto", "eigh" or "krylov", got {method!r}')
    if tolerance is not None and not 0 < tolerance < 1:
        raise ValueError(f"`tolerance` must be between 0 and 1, got {tolerance}")
