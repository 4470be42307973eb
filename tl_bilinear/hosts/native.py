"""TransformerLens' native models with bilinear MLPs: their boot, biases, and adapter."""

import copy
from typing import Any

import torch
from torch import nn
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.gated_mlp import GatedMLPBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformer_lens.model_bridge.sources.native import NativeModel, initialize_native_model
from transformer_lens.model_bridge.supported_architectures.native import (
    NativeArchitectureAdapter,
)

from tl_bilinear.hosts.bridge import BilinearMLPBridge


class NativeBilinearAdapter(NativeArchitectureAdapter):
    """For `build_bridge_from_module(model, "TransformerLensBilinear", tl_config=cfg)`."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        assert self.component_mapping is not None, "the parent class sets it"
        submodules = self.component_mapping["blocks"].submodules
        mlp = submodules.get("mlp")
        if type(mlp) is not GatedMLPBridge:
            raise ValueError(
                "TransformerLensBilinear needs a configuration with gated_mlp=True, "
                f"got an MLP of type {type(mlp).__name__}"
            )
        mlp.__class__ = BilinearMLPBridge


def boot_bilinear(
    config: TransformerBridgeConfig, *, mlp_bias: bool = False, tokenizer: Any = None
) -> TransformerBridge:
    """A native bilinear model, randomly initialised and trainable.

    As `TransformerBridge.boot_native` after `register()`, and with `mlp_bias` the MLPs are
    out((gate x + b_gate) * (in x + b_in)) + b_out, the biases zero at first. `config.seed`
    makes the weights reproducible; the state dict has `mlp.{gate,in,out}.bias` beside the
    weights.

    Raises:
        ValueError: a configuration without act_fn="bilinear" and gated_mlp=True.
    """
    from tl_bilinear.hosts.registration import register

    if config.act_fn != "bilinear" or not config.gated_mlp or config.attn_only:
        raise ValueError(
            'a bilinear model needs act_fn="bilinear", gated_mlp=True and attn_only=False, got '
            f"act_fn={config.act_fn!r}, gated_mlp={config.gated_mlp}, attn_only={config.attn_only}"
        )
    register()
    if not mlp_bias:
        return TransformerBridge.boot_native(config, tokenizer=tokenizer)
    # A bridge notes which linears have a bias when it is built around them.
    cfg = copy.deepcopy(config)
    seeded = cfg.init_weights and cfg.seed is not None
    with torch.random.fork_rng(devices=[], enabled=seeded):
        model = NativeModel(cfg)
        for block in model.layers:
            for name in ("gate", "in", "out"):
                linear = getattr(block.mlp, name)
                linear.bias = nn.Parameter(torch.zeros_like(linear.weight[:, 0]))
        if cfg.init_weights:
            initialize_native_model(model, cfg)
    return build_bridge_from_module(
        model, "TransformerLensNative", tl_config=cfg, tokenizer=tokenizer, model_name="native"
    )


def cast_(bridge: Any, dtype: torch.dtype) -> None:
    """As `bridge.to(dtype)`, which makes its state dict once per entry (docs/upstream.md, 20)."""
    bridge.cfg.dtype = dtype
    nn.Module.to(bridge, dtype)
    bridge.original_model.to(dtype)
