"""Make TransformerLens know bilinear MLPs. Idempotent; nothing happens at import."""

import functools
from typing import Any

import torch
from torch import Tensor


def has_hooked_transformer() -> bool:
    """Whether this TransformerLens still has HookedTransformer (3.x)."""
    try:
        import transformer_lens.factories.mlp_factory  # noqa: F401  (4.x removed it)
    except ImportError:
        return False
    return True


def register() -> None:
    """All of `tl_bilinear.register` but the names of public checkpoints, which it adds on top."""
    from tl_bilinear.hosts.folding import guard_bridge, guard_hooked_transformer

    if has_hooked_transformer():
        _register_hooked_transformer()
        guard_hooked_transformer()
    _register_native()
    _register_bridges()
    guard_bridge()


def adopt_(model: Any) -> int:
    """Make the identity-gated MLPs of a bridge that was booted before `register()` bilinear.

    Returns how many layers were changed. Works before and after compatibility mode.
    """
    from tl_bilinear.hosts.bridge import adopt_mlp

    return sum(adopt_mlp(block.mlp) for block in model.blocks if hasattr(block, "mlp"))


def _identity(x: Tensor) -> Tensor:
    return x


def _register_hooked_transformer() -> None:
    from transformer_lens.factories.mlp_factory import MLPFactory
    from transformer_lens.utilities.activation_functions import SUPPORTED_ACTIVATIONS

    from tl_bilinear.hosts.hooked_transformer import BilinearMLP

    SUPPORTED_ACTIVATIONS.setdefault("bilinear", _identity)
    upstream = MLPFactory.create_mlp
    if getattr(upstream, "_tl_bilinear", False):
        return

    @functools.wraps(upstream)
    def create_mlp(cfg: Any) -> Any:
        if cfg.act_fn != "bilinear":
            return upstream(cfg)
        if not cfg.gated_mlp or cfg.num_experts or cfg.load_in_4bit:
            raise ValueError(
                'act_fn="bilinear" needs gated_mlp=True, no experts and no 4-bit weights, got '
                f"gated_mlp={cfg.gated_mlp}, num_experts={cfg.num_experts}, "
                f"load_in_4bit={cfg.load_in_4bit}: without a gate the MLP would be linear"
            )
        return BilinearMLP(cfg)

    create_mlp._tl_bilinear = True  # pyright: ignore[reportAttributeAccessIssue]
    MLPFactory.create_mlp = staticmethod(create_mlp)


def _register_native() -> None:
    from transformer_lens.model_bridge.sources.native import model as native

    native._ACTIVATIONS.setdefault("bilinear", _identity)
    upstream = native.NativeMLP.__init__
    if getattr(upstream, "_tl_bilinear", False):
        return

    @functools.wraps(upstream)
    def __init__(self: Any, cfg: Any) -> None:
        if cfg.act_fn == "bilinear":
            raise ValueError(
                'act_fn="bilinear" needs gated_mlp=True: without a gate the MLP would be linear'
            )
        upstream(self, cfg)

    __init__._tl_bilinear = True  # pyright: ignore[reportAttributeAccessIssue]
    native.NativeMLP.__init__ = __init__


def _register_bridges() -> None:
    from transformer_lens.model_bridge.generalized_components.gated_mlp import GatedMLPBridge

    from tl_bilinear.hosts.bridge import adopt_mlp

    upstream = GatedMLPBridge.set_original_component
    if getattr(upstream, "_tl_bilinear", False):
        return

    @functools.wraps(upstream)
    def set_original_component(self: Any, original_component: torch.nn.Module) -> None:
        upstream(self, original_component)
        adopt_mlp(self)

    set_original_component._tl_bilinear = True  # pyright: ignore[reportAttributeAccessIssue]
    GatedMLPBridge.set_original_component = set_original_component
