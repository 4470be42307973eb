"""New, untrained transformers that differ in their MLP alone: a bilinear one and its twins.

All are of transformers' own classes: a Llama where the MLP has a gate, an Arcee, which is a Llama
with an MLP of two matrices, where it has none. The twins have the same number of weights: an MLP
of two matrices is half as wide again.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from transformers import ArceeConfig, ArceeForCausalLM, LlamaConfig, LlamaForCausalLM

MLP = Literal["bilinear", "swiglu", "reglu", "geglu", "relu", "gelu"]
GATED = {"bilinear": "linear", "swiglu": "silu", "reglu": "relu", "geglu": "gelu"}
UNGATED = {"relu": "relu", "gelu": "gelu"}


@dataclass(frozen=True)
class Shape:
    """The sizes of a transformer with RMSNorm, rotary positions and no biases.

    `d_mlp` is the width of a gated MLP, even, so that a twin of two matrices has 3/2 of it.

    Raises:
        ValueError: sizes that do not fit one another.
    """

    d_vocab: int
    n_layers: int = 1
    d_model: int = 128
    d_mlp: int = 256
    n_heads: int = 4
    n_ctx: int = 512
    tied: bool = False

    def __post_init__(self):
        for name in ("d_vocab", "n_layers", "d_model", "d_mlp", "n_heads", "n_ctx"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}: give 1 or more")
        if self.d_model % (2 * self.n_heads):
            raise ValueError(
                f"`d_model` = {self.d_model} must be an even multiple of `n_heads` = "
                f"{self.n_heads}: rotary positions turn pairs"
            )
        if self.d_mlp % 2:
            raise ValueError(f"`d_mlp` is {self.d_mlp}: give an even number")


def fresh_model(
    shape: Shape, mlp: MLP = "bilinear", *, seed: int = 0, bos: int = 0, eos: int = 1
) -> LlamaForCausalLM | ArceeForCausalLM:
    """An untrained transformer, in float32; the same seed gives the same weights.

    Matrices are Gaussian with standard deviation 1/sqrt(fan-in), those that write into the stream
    divided by sqrt(2 n_layers) as in GPT-2; embeddings have 1/sqrt(d_model), tied ones 0.02.

    Raises:
        ValueError: an MLP that is not known.
    """
    if mlp not in get_args(MLP):
        raise ValueError(f"`mlp` is {mlp!r}: give one of {', '.join(get_args(MLP))}")
    gated = mlp in GATED
    sizes: dict[str, Any] = dict(
        vocab_size=shape.d_vocab,
        num_hidden_layers=shape.n_layers,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp if gated else shape.d_mlp * 3 // 2,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_heads,
        max_position_embeddings=shape.n_ctx,
        hidden_act=(GATED if gated else UNGATED)[mlp],
        tie_word_embeddings=shape.tied,
        initializer_range=0.02,
        rms_norm_eps=1e-5,
        bos_token_id=bos,
        eos_token_id=eos,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        model = (
            LlamaForCausalLM(LlamaConfig(**sizes))
            if gated
            else ArceeForCausalLM(ArceeConfig(**sizes))
        )
        _initialise_(model, shape)
    return model.eval()


@torch.no_grad()
def _initialise_(model: torch.nn.Module, shape: Shape) -> None:
    std = shape.d_model**-0.5
    writes = (2 * shape.n_layers) ** -0.5
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name:
            parameter.normal_(0, 0.02 if shape.tied else std)
        elif parameter.ndim == 2:
            into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
            fan_in = parameter.shape[1] ** -0.5
            parameter.normal_(0, fan_in * (writes if into_stream else 1.0))
