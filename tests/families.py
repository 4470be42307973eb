"""Tiny random bilinear models of every transformers class that every host must read.

Gains, biases and embeddings are far from their defaults, so that one that is dropped, scaled
or swapped shows in the log-probabilities.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

FAMILIES = {
    "Llama": "LlamaForCausalLM",
    "Mistral": "MistralForCausalLM",
    "Qwen2": "Qwen2ForCausalLM",
    "Qwen3": "Qwen3ForCausalLM",
    "Gemma 1": "GemmaForCausalLM",
    "Gemma 2": "Gemma2ForCausalLM",
    "Gemma 3": "Gemma3ForCausalLM",
    "Phi3": "Phi3ForCausalLM",
    "GLM": "GlmForCausalLM",
    "OLMo2": "Olmo2ForCausalLM",
    "StableLM": "StableLmForCausalLM",
}

# What a class cannot have, and why: these cells of the parity table do not exist.
NO_BIAS = {
    "Mistral": "MistralMLP and MistralAttention have none",
    "Phi3": "Phi3MLP and Phi3Attention have none",
}
BIASES: dict[str, dict[str, Any]] = {
    "Llama": {"mlp_bias": True, "attention_bias": True},  # the only class with MLP biases
    "Qwen2": {},  # biases on q, k and v, always
    "Qwen3": {"attention_bias": True},
    "Gemma 1": {"attention_bias": True},
    "Gemma 2": {"attention_bias": True},
    "Gemma 3": {"attention_bias": True},
    "GLM": {"attention_bias": True},
    "OLMo2": {"attention_bias": True},
    "StableLM": {"use_qkv_bias": True},  # and LayerNorm biases, always
}
# The key that decides the gate; the built module is what counts (Gemma 2 and 3 ignore hidden_act).
ACTIVATION_KEY = {
    "Gemma 2": "hidden_activation",
    "Gemma 3": "hidden_activation",
}
OWN: dict[str, dict[str, Any]] = {
    "Gemma 2": {
        "query_pre_attn_scalar": 4,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 20.0,
        "sliding_window": 8,
    },
    "Gemma 3": {"query_pre_attn_scalar": 4, "sliding_window": 8},
    "Phi3": {"pad_token_id": 0},
    "GLM": {"partial_rotary_factor": 0.5, "pad_token_id": 0},
    "StableLM": {"partial_rotary_factor": 0.5},
    "Mistral": {"sliding_window": None},
}


def family(name: str, activation: str = "linear", *, seed: int = 0, **options: Any) -> Any:
    """A random model of a family, in eval mode; `options` are keys of its configuration."""
    import transformers

    model_class = getattr(transformers, FAMILIES[name])
    settings: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "vocab_size": 40,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        ACTIVATION_KEY.get(name, "hidden_act"): activation,
        **OWN.get(name, {}),
        **options,
    }
    if name in ("Phi3", "StableLM"):
        settings.pop("head_dim")
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = model_class(model_class.config_class(**settings, attn_implementation="eager"))
    perturb_(model)
    torch.random.set_rng_state(state)
    return model.eval()


def perturb_(model: nn.Module) -> None:
    """Move every gain and bias away from its default."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key or "bias" in key:
                parameter.add_(0.3 * torch.randn_like(parameter))


def bridge_of(model: Any, name: str) -> Any:
    """A bridge around a model in memory, as a user boots one."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    import tl_bilinear as tlb

    tlb.register()
    return build_bridge_from_module(model, FAMILIES[name], hf_config=model.config)


def log_probabilities(model: Callable[[Tensor], Any], tokens: Tensor) -> Tensor:
    """In float64, from a transformers model or a TransformerLens host."""
    with torch.no_grad():
        out = model(tokens)
    return (out if isinstance(out, Tensor) else out.logits).double().log_softmax(-1)


def hooked_of(model: Any, name: str = "tiny") -> Any:
    """A HookedTransformer of a model in memory (TransformerLens 3.9)."""
    from tl_bilinear.hosts.boot import boot

    return boot(model, None, name, "hooked_transformer")


def process_(model: Any, mode: str) -> Any:
    """ "raw", "compat" (a bridge's hook names, nothing folded) or "folded"."""
    hooked = not hasattr(model, "enable_compatibility_mode")
    if mode == "compat" and not hooked:
        model.enable_compatibility_mode(no_processing=True)
    if mode == "folded":
        with warnings.catch_warnings():
            # Phi3, GLM and OLMo2 on a bridge, OLMo2 and Gemma 2 on a HookedTransformer: what
            # would change the model is left out, with a warning.
            warnings.filterwarnings("ignore", ".*does not support", UserWarning)
            if hooked:
                model.process_weights_()
            else:
                model.enable_compatibility_mode()
    return model
