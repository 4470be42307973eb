"""Gradients through hooks on every host, in every mode, against finite differences in float64."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from families import bridge_of, family, process_
from models import hosts, native, tiny_llama
from torch import Tensor

import tl_bilinear as tlb
from tl_bilinear.hosts.boot import boot
from tl_bilinear.hosts.stream import edit_stream

TOKENS = torch.randint(0, 40, (1, 6), generator=torch.Generator().manual_seed(4))
D_MODEL, D_MLP, HEADS = 16, 24, 4
MODES = ("raw", "compat", "folded")
NATIVE = [f"native {norm} {mode}" for norm in ("LN", "RMS", None) for mode in MODES]
WRAPPED = [f"Llama {mode}" for mode in MODES]
WRAPPED += [f"{name} {mode}" for name in ("Phi3", "Gemma 2", "OLMo2") for mode in ("raw", "folded")]
HOOKED = ["hooked LN", "hooked RMS", "hooked None", "hooked Llama"]
CASES = [*NATIVE, *WRAPPED, *(HOOKED if "hooked_transformer" in hosts() else [])]

# (hook, axis of the mask counted from the end, size)
SITES = {
    "stream": ("blocks.0.hook_resid_pre", -1, D_MODEL),
    "heads": ("blocks.0.attn.hook_z", -2, HEADS),
    "gate": ("blocks.0.mlp.hook_pre", -1, D_MLP),
    "in": ("blocks.0.mlp.hook_pre_linear", -1, D_MLP),
    "product": ("blocks.0.mlp.hook_post", -1, D_MLP),
    "output": ("blocks.0.hook_mlp_out", -1, D_MODEL),
    "attention": ("blocks.1.hook_attn_out", -1, D_MODEL),
}


def build(case: str) -> Any:
    kind, _, mode = case.rpartition(" ")
    if case == "hooked Llama":
        return boot(tiny_llama().double(), None, "tiny", "hooked_transformer")
    if kind == "hooked":
        return native(None if mode == "None" else mode, "hooked_transformer")
    if kind.startswith("native"):
        norm = kind.split()[1]
        return process_(native(None if norm == "None" else norm, "transformer_bridge"), mode)
    return process_(bridge_of(family(kind).double(), kind), mode)


def is_exact(case: str) -> bool:
    """Whether everything is computed in float64: transformers' RMSNorms compute in float32."""
    return case.startswith(("hooked", "native LN", "native None"))


@pytest.fixture(scope="module", params=CASES)
def case(request) -> tuple[str, Any]:
    return request.param, build(request.param)


def require_gradient(
    name: str, run: Callable[[Tensor], Tensor], at: Tensor, direction: Tensor
) -> None:
    """d run/d direction by backpropagation, and by a central difference."""
    at = at.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(run(at), at)
    found = float((gradient * direction).sum())
    step, limit = (1e-5, 1e-6) if is_exact(name) else (1e-3, 2e-3)
    with torch.no_grad():
        expected = float(run(at + step * direction) - run(at - step * direction)) / (2 * step)
    assert abs(expected) > 1e-3, "the direction shows nothing"
    assert abs(found - expected) <= limit * max(1.0, abs(expected))


def logit(model: Any, hooks: Any) -> Tensor:
    with hooks:
        out = model(TOKENS)[0, -1]
    return out[7] - out[3]


@pytest.mark.parametrize("site", SITES)
def test_masks_inside_hooks(case, site):
    name, model = case
    hook_name, axis, size = SITES[site]

    def run(mask: Tensor) -> Tensor:
        shaped = mask.reshape(-1, *[1] * (-axis - 1))
        hook = (hook_name, lambda value, hook: value * shaped.to(value))
        return logit(model, tlb.get_host(model).hooks([hook]))

    direction = torch.randn(size, dtype=torch.float64)
    require_gradient(name, run, torch.ones(size, dtype=torch.float64), direction)


@pytest.mark.parametrize("where", ["pre", "mid", "post"])
def test_the_stream(case, where):
    name, model = case

    def run(delta: Tensor) -> Tensor:
        return logit(model, edit_stream(model, 0, where, lambda stream: stream + delta))

    zero = torch.zeros(1, TOKENS.shape[1], D_MODEL, dtype=torch.float64)
    require_gradient(name, run, zero, torch.randn_like(zero))


@contextmanager
def moved(weight: Tensor, by: Tensor) -> Iterator[None]:
    with torch.no_grad():
        weight.add_(by)
    try:
        yield
    finally:
        with torch.no_grad():
            weight.sub_(by)


@pytest.mark.parametrize("matrix", ["W_gate", "W_in", "W_out"])
def test_the_weights_of_the_mlp(case, matrix):
    """TransformerLens 3.9's own bridge gives them no gradient in compatibility mode."""
    name, model = case
    weight = getattr(model.blocks[0].mlp, matrix)
    direction = torch.randn(weight.shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(
        logit(model, torch.enable_grad()), weight_leaf(weight), allow_unused=False
    )
    found = float((oriented(gradient, weight) * direction).sum())
    step, limit = (1e-5, 1e-6) if is_exact(name) else (1e-3, 2e-3)
    values = []
    for sign in (1, -1):
        with moved(getattr(model.blocks[0].mlp, matrix), sign * step * direction), torch.no_grad():
            values.append(float(logit(model, torch.no_grad())))
    expected = (values[0] - values[1]) / (2 * step)
    assert abs(found - expected) <= limit * max(1.0, abs(expected))


def weight_leaf(weight: Tensor) -> Tensor:
    """The parameter behind a bridge's transposed view."""
    return weight if weight.is_leaf else weight._base  # pyright: ignore[reportReturnType]


def oriented(gradient: Tensor, weight: Tensor) -> Tensor:
    return gradient if gradient.shape == weight.shape and weight.is_leaf else gradient.mT
