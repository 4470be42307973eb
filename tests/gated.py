"""Tiny gated models, recipes and token streams for the tests of conversion."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tiny_llama(activation: str = "silu", **changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
        "hidden_act": activation,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()


def log_probs(model, tokens) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits.log_softmax(-1)


def assert_is_bilinear(mlp: torch.nn.Module, x: torch.Tensor) -> None:
    gate, up, down = (mlp.get_submodule(f"{name}_proj") for name in ("gate", "up", "down"))
    assert torch.equal(mlp(x), down(gate(x) * up(x)))


TOKENS = torch.arange(3, 33).reshape(2, 15)


def tiny_config(**changes):
    from tl_bilinear.conversion import DistillationConfig

    settings: dict[str, Any] = {"n_steps": 6, "batch_size": 4, "window": 8, "warmup_steps": 2}
    return DistillationConfig(**(settings | changes))


def tiny_data() -> torch.Tensor:
    return torch.randint(0, 40, (500,), generator=torch.Generator().manual_seed(1))
