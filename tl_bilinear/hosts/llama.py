"""A transformers Llama, in memory, into a HookedTransformer, MLP and attention biases kept.

TransformerLens' own converter writes zeros for MLP biases and takes its configuration from
tables by name; this one reads the model that it is given.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

from tl_bilinear.hosts.bridge import built_activation
from tl_bilinear.hosts.gates import is_identity, known_gate
from tl_bilinear.hosts.registration import register

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")
"""Gates that transformers and HookedTransformer call by one name."""


def hooked_transformer_from_llama(llama: Any, tokenizer: Any) -> HookedTransformer:
    """Build the HookedTransformer with the weights as stored: nothing folded or centred.

    Args:
        llama: a `transformers.LlamaForCausalLM`. The built gate activation decides whether
            the MLPs are bilinear, never a configuration key.
        tokenizer: its tokenizer, or None.

    Raises:
        ValueError: for rotary scaling or an activation that HookedTransformer does not have.
    """
    register()
    cfg = _config(llama)
    model = HookedTransformer(cfg, tokenizer=tokenizer, move_to_device=False)
    if cfg.act_fn != "bilinear" and _has_mlp_biases(llama):
        _hold_biases_(model)
    state = _state_dict(llama, cfg)
    # Not load_and_process_state_dict: with every step off it still rounds float64 to float32.
    missing, surplus = model.load_state_dict(state, strict=False)
    buffers = {name for name, _ in model.named_buffers()}
    assert set(missing) <= buffers and not surplus, (missing, surplus)
    model.to(str(llama.device), print_details=False)
    return model.eval()


def _config(llama: Any) -> HookedTransformerConfig:
    config = llama.config
    rope = dict(config.rope_parameters)
    if rope.get("rope_type", "default") != "default":
        raise ValueError(
            f"HookedTransformer cannot hold this model's rotary scaling {rope!r}: load it with "
            'host="transformer_bridge"'
        )
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_heads = config.num_key_value_heads
    return HookedTransformerConfig(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_ctx=config.max_position_embeddings,
        d_head=d_head,
        n_heads=config.num_attention_heads,
        n_key_value_heads=None if kv_heads == config.num_attention_heads else kv_heads,
        d_mlp=config.intermediate_size,
        d_vocab=config.vocab_size,
        act_fn=_act_fn(llama),
        gated_mlp=True,
        normalization_type="RMS",
        final_rms=True,
        eps=config.rms_norm_eps,
        positional_embedding_type="rotary",
        rotary_dim=d_head,
        rotary_base=rope["rope_theta"],
        rotary_adjacent_pairs=False,
        original_architecture="LlamaForCausalLM",
        model_name=config.name_or_path or "llama",
        dtype=llama.dtype,
        device=str(llama.device),
        init_weights=False,
    )


def _act_fn(llama: Any) -> str:
    activations = [built_activation(layer.mlp) for layer in llama.model.layers]
    if all(is_identity(activation) for activation in activations):
        return "bilinear"
    gates = {None if act is None else known_gate(act) for act in activations}
    gate = gates.pop() if len(gates) == 1 else None
    if gate is None or gate.activation not in ACTIVATIONS:
        raise ValueError(
            f"HookedTransformer has no gate activation for {llama.config.hidden_act!r} "
            f"({type(activations[0]).__name__}): load the model with host='transformer_bridge'"
        )
    return gate.activation


def _has_mlp_biases(llama: Any) -> bool:
    mlps = [layer.mlp for layer in llama.model.layers]
    return any(m.gate_proj.bias is not None or m.up_proj.bias is not None for m in mlps)


def _hold_biases_(model: HookedTransformer) -> None:
    """Put a component with all three biases in the place of TransformerLens' GatedMLPs."""
    from tl_bilinear.hosts.hooked_transformer import BiasedGatedMLP

    for block in model.blocks:
        block.mlp = BiasedGatedMLP(model.cfg)
    model.setup()


def _state_dict(llama: Any, cfg: HookedTransformerConfig) -> dict[str, Tensor]:
    state = {
        "embed.W_E": llama.model.embed_tokens.weight,
        "ln_final.w": llama.model.norm.weight,
        "unembed.W_U": llama.lm_head.weight.T,
        "unembed.b_U": _bias(llama.lm_head, cfg.d_vocab),
    }
    for index, layer in enumerate(llama.model.layers):
        prefix = f"blocks.{index}."
        state[prefix + "ln1.w"] = layer.input_layernorm.weight
        state[prefix + "ln2.w"] = layer.post_attention_layernorm.weight
        for key, value in _attention(layer.self_attn, cfg).items():
            state[prefix + "attn." + key] = value
        for key, value in _mlp(layer.mlp, cfg).items():
            state[prefix + "mlp." + key] = value
    return {key: value.detach().clone() for key, value in state.items()}


def _attention(attention: Any, cfg: HookedTransformerConfig) -> dict[str, Tensor]:
    # HookedTransformer names K and V with an underscore where several heads share them.
    shared = "_" if cfg.n_key_value_heads is not None else ""
    kv_heads = cfg.n_key_value_heads or cfg.n_heads
    state = {
        "W_O": rearrange(attention.o_proj.weight, "m (n h) -> n h m", n=cfg.n_heads),
        "b_O": _bias(attention.o_proj, cfg.d_model),
    }
    for letter, module, heads in (
        ("Q", attention.q_proj, cfg.n_heads),
        ("K", attention.k_proj, kv_heads),
        ("V", attention.v_proj, kv_heads),
    ):
        under = "" if letter == "Q" else shared
        state[f"{under}W_{letter}"] = rearrange(module.weight, "(n h) m -> n m h", n=heads)
        bias = _bias(module, heads * cfg.d_head)
        state[f"{under}b_{letter}"] = rearrange(bias, "(n h) -> n h", n=heads)
    return state


def _mlp(mlp: Any, cfg: HookedTransformerConfig) -> dict[str, Tensor]:
    assert cfg.d_mlp is not None
    state = {
        "W_gate": mlp.gate_proj.weight.T,
        "W_in": mlp.up_proj.weight.T,
        "W_out": mlp.down_proj.weight.T,
        "b_in": _bias(mlp.up_proj, cfg.d_mlp),
        "b_out": _bias(mlp.down_proj, cfg.d_model),
    }
    if cfg.act_fn == "bilinear" or mlp.gate_proj.bias is not None:
        state["b_gate"] = _bias(mlp.gate_proj, cfg.d_mlp)
    return state


def _bias(module: Any, size: int) -> Tensor:
    if module.bias is not None:
        return module.bias
    return torch.zeros(size, dtype=module.weight.dtype, device=module.weight.device)
