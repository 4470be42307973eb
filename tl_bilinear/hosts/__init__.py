"""Hosts: the only place that imports transformer_lens. `get_host` finds the right one."""

from typing import Any

from tl_bilinear.hosts.host import AbstractHost as AbstractHost
from tl_bilinear.hosts.registration import adopt_ as adopt_
from tl_bilinear.hosts.registration import has_hooked_transformer as has_hooked_transformer
from tl_bilinear.hosts.registration import register as register


def get_host(model: Any) -> AbstractHost:
    """The host interface of a TransformerLens model (or the host itself, given one).

    Raises:
        ValueError: for anything that is neither a HookedTransformer nor a TransformerBridge,
            or whose MLPs have no gate.
    """
    if isinstance(model, AbstractHost):
        return model
    from transformer_lens.model_bridge import TransformerBridge

    if isinstance(model, TransformerBridge):
        from tl_bilinear.hosts.bridge import TransformerBridgeHost

        return TransformerBridgeHost(model)
    if has_hooked_transformer():
        from transformer_lens import HookedTransformer

        if isinstance(model, HookedTransformer):
            from tl_bilinear.hosts.hooked_transformer import HookedTransformerHost

            return HookedTransformerHost(model)
    raise ValueError(
        f"a HookedTransformer or a TransformerBridge is needed, got {type(model).__name__}: "
        "load one with tl_bilinear.load(name_or_folder)"
    )
