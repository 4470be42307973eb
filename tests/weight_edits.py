"""Modes to edit, and the logits of whatever runs: what tests of weight edits share."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tl_bilinear as tlb

TOKENS = torch.arange(36).reshape(2, 18) % 40


def near_modes(model: Any, layer: int = 1, count: int = 3) -> list[tlb.Mode]:
    """Of two directions at cosine 0.99."""
    d = tlb.get_host(model).d_model
    u = torch.randn(2, d, dtype=torch.float64)
    u[1] -= u[0] * (u[0] @ u[1]) / (u[0] @ u[0])
    u[1] = 0.99 * u[0] / u[0].norm() + (1 - 0.99**2) ** 0.5 * u[1] / u[1].norm()
    tensor = tlb.get_host(model).mlp_tensor(layer).to(torch.float64)
    eigen = tlb.eigendecompose(tensor, u, count)
    return [
        tlb.Mode(layer, u[c], float(eigen.eigenvalues[c, i]), eigen.eigenvectors[c, i])
        for c in range(2)
        for i in range(count)
    ]


def logits_of(model: Any, tokens: Tensor = TOKENS) -> Tensor:
    with torch.no_grad():
        found = model(tokens)
    return getattr(found, "logits", found)


def hooked(model: Any, edit: Any) -> Tensor:
    with edit:
        return logits_of(model)


def close(found: Tensor, expected: Tensor, rtol: float) -> None:
    limit = rtol * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=rtol, atol=limit)


def plain_transformers(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=dtype).eval()
