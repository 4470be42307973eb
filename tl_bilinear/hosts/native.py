"""The adapter of TransformerLens' native models with a bilinear MLP in its place."""

from typing import Any

from transformer_lens.model_bridge.generalized_components.gated_mlp import GatedMLPBridge
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
