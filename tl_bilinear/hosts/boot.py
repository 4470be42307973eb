"""A transformers model, in memory, into the TransformerLens class that is asked for."""

from typing import Any, Literal

from tl_bilinear.hosts.registration import has_hooked_transformer, register

HostName = Literal["auto", "hooked_transformer", "transformer_bridge"]


def boot(transformers_model: Any, tokenizer: Any, name: str, host: HostName = "auto") -> Any:
    """Build the host model; the weights are used as they are.

    A bridge wraps `transformers_model` itself; a HookedTransformer copies its weights.

    Args:
        name: what transformers finds the configuration under, a folder or a hub id.
        host: "auto" is a HookedTransformer for Llamas where TransformerLens has one (3.x) and
            a TransformerBridge elsewhere.

    Raises:
        ValueError: an unknown host, a HookedTransformer on TransformerLens 4.x, or a model
            that a HookedTransformer cannot hold, with the reason.
    """
    require_host_name(host)
    if host == "auto":
        llama = transformers_model.config.model_type == "llama"
        hooked = llama and has_hooked_transformer()
        host = "hooked_transformer" if hooked else "transformer_bridge"
    if host == "transformer_bridge":
        return _boot_bridge(transformers_model, tokenizer, name)
    if not has_hooked_transformer():
        raise ValueError(
            "TransformerLens 4.x has no HookedTransformer: use host='transformer_bridge', or "
            "install transformer-lens 3.9"
        )
    from tl_bilinear.hosts.hooked import hooked_transformer_of

    return hooked_transformer_of(transformers_model, tokenizer)


def require_host_name(host: str) -> None:
    """Raise ValueError for a host that nobody knows."""
    if host not in ("auto", "hooked_transformer", "transformer_bridge"):
        raise ValueError(
            f'`host` must be "auto", "hooked_transformer" or "transformer_bridge", got {host!r}'
        )


def _boot_bridge(transformers_model: Any, tokenizer: Any, name: str) -> Any:
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    register()
    if tokenizer is None:
        # boot_transformers insists on finding a tokenizer under `name`.
        config = transformers_model.config
        return build_bridge_from_module(
            transformers_model, type(transformers_model).__name__, hf_config=config, model_name=name
        )
    return TransformerBridge.boot_transformers(
        name,
        hf_model=transformers_model,
        tokenizer=tokenizer,
        device=str(transformers_model.device),
        dtype=transformers_model.dtype,
    )
