"""The packed layout of tdooms/ts-* and tdooms/fw-*: fused q, k, v and fused left, right.

Read from the authors' description (github.com/tdooms/bilinear-decomposition, src/language):

    x += s attn(n1(x)),  x += mlp(n2(x)),  logits = lm_head(n_f(x))
    mlp(x) = p((left x) * (right x)),  w = [left; right],  s = 1/sqrt(2 n_layer)

RMSNorm without gain (eps 1e-8), half-rotation RoPE with base 10000, scores over sqrt(d_head).
Older files name `p` `o` and have norm weights and biases.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from tl_bilinear.checkpoints.error import CheckpointError
from tl_bilinear.checkpoints.layouts.layout import AbstractLayout, Config, Read, Shape

SIZES = ("n_layer", "n_head", "d_model", "d_hidden", "n_ctx")
GATES = {None: "linear", "silu": "silu", "gelu": "gelu", "relu": "relu"}
TOKENIZERS = {
    "ts-4096": "tdooms/ts-tokenizer-4096",
    "mistral": "mistral-community/Mixtral-8x22B-v0.1",
}
ROPE_BASE = 10000.0
EPS = 1e-8
EMBEDDING = "transformer.wte.weight"


class PackedLayout(AbstractLayout):
    name = "packed"
    described = 'architectures ["Transformer"], transformer.h.0.attn.qkv.weight (tdooms/ts-*, fw-*)'

    def recognises(self, config: Config, names: Collection[str]) -> bool:
        return (
            "model_type" not in config
            and config.get("architectures") == ["Transformer"]
            and EMBEDDING in names
            and "transformer.h.0.attn.qkv.weight" in names
        )

    def settings(self, config: Config, shapes: Mapping[str, Shape]) -> dict[str, Any]:
        size = _sizes(config)
        _require_known(config)
        return {
            "hidden_act": GATES[config.get("gate")],
            "hidden_size": size["d_model"],
            "intermediate_size": size["d_hidden"],
            "num_hidden_layers": size["n_layer"],
            "num_attention_heads": size["n_head"],
            "num_key_value_heads": size["n_head"],
            "head_dim": size["d_model"] // size["n_head"],
            "max_position_embeddings": size["n_ctx"],
            "vocab_size": shapes[EMBEDDING][0],
            "rms_norm_eps": EPS,
            "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_BASE},
            "tie_word_embeddings": False,
            "attention_bias": _has_bias(shapes, "attn", "n1"),
            "mlp_bias": _has_bias(shapes, "mlp", "n2"),
        }

    def tokenizer_id(self, config: Config) -> str | None:
        name = str(config.get("tokenizer"))
        return TOKENIZERS.get(name, name if "/" in name else None)

    def expected(self, config: Config, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        size = _sizes(config)
        d, hidden = size["d_model"], size["d_hidden"]
        vocab = shapes[EMBEDDING][0]
        needed: dict[str, Shape] = {EMBEDDING: (vocab, d), "lm_head.weight": (vocab, d)}
        optional: dict[str, Shape] = {"lm_head.bias": (vocab,)}
        optional |= _norm_shapes("transformer.n_f", d)
        for layer in range(size["n_layer"]):
            at = f"transformer.h.{layer}."
            needed |= {
                at + "attn.qkv.weight": (3 * d, d),
                at + "attn.o.weight": (d, d),
                at + "mlp.w.weight": (2 * hidden, d),
                f"{_down(at, shapes)}.weight": (d, hidden),
            }
            optional |= {
                at + "attn.qkv.bias": (3 * d,),
                at + "attn.o.bias": (d,),
                at + "mlp.w.bias": (2 * hidden,),
                f"{_down(at, shapes)}.bias": (d,),
                **_norm_shapes(at + "n1", d),
                **_norm_shapes(at + "n2", d),
            }
        rotation = (d // size["n_head"] // 2,)
        optional |= {name: rotation for name in shapes if _is_rotation(name)}
        return needed | {name: shape for name, shape in optional.items() if name in shapes}

    def convert(self, config: Config, names: Collection[str], read: Read) -> dict[str, Tensor]:
        size = _sizes(config)
        scale = 1 / math.sqrt(2 * size["n_layer"]) if config.get("scale_attn", True) else 1.0
        for name in names:
            if _is_rotation(name):
                _require_rotation(name, read(name), size["d_model"] // size["n_head"])
        _require_zero("lm_head.bias", names, read)
        _require_zero("transformer.n_f.bias", names, read)
        with_biases = (_has_bias(names, "attn", "n1"), _has_bias(names, "mlp", "n2"))
        head = read("lm_head.weight")
        state = {
            "model.embed_tokens.weight": read(EMBEDDING),
            "model.norm.weight": _gain("transformer.n_f", names, read, head[0]),
            "lm_head.weight": head,
        }
        for layer in range(size["n_layer"]):
            at, to = f"transformer.h.{layer}.", f"model.layers.{layer}."
            block = _Block(at, to, names, read)
            state |= block.attention(scale, with_biases[0]) | block.mlp(with_biases[1])
        return state


class _Block:
    """One layer's tensors on their way into a Llama layer."""

    def __init__(self, at: str, to: str, names: Collection[str], read: Read):
        self.at, self.to, self.names, self.read = at, to, names, read

    def attention(self, scale: float, biased: bool) -> dict[str, Tensor]:
        qkv = self.read(self.at + "attn.qkv.weight")
        o = self.read(self.at + "attn.o.weight")
        to = self.to + "self_attn."
        state = {f"{to}{x}_proj.weight": w for x, w in zip("qkv", qkv.chunk(3), strict=True)}
        state[to + "o_proj.weight"] = _scaled(o, scale)
        state[self.to + "input_layernorm.weight"] = _gain(
            self.at + "n1", self.names, self.read, o[0]
        )
        if biased:
            bias = self._bias("attn.qkv", qkv) + self._norm_bias("n1", qkv)
            state |= {f"{to}{x}_proj.bias": b for x, b in zip("qkv", bias.chunk(3), strict=True)}
            state[to + "o_proj.bias"] = _scaled(self._bias("attn.o", o), scale)
        return {name: value.contiguous() for name, value in state.items()}

    def mlp(self, biased: bool) -> dict[str, Tensor]:
        down_name = _down(self.at, self.names)
        both, down = self.read(self.at + "mlp.w.weight"), self.read(down_name + ".weight")
        left, right = both.chunk(2)
        to = self.to + "mlp."
        state = {
            to + "gate_proj.weight": left,
            to + "up_proj.weight": right,
            to + "down_proj.weight": down,
            self.to + "post_attention_layernorm.weight": _gain(
                self.at + "n2", self.names, self.read, both[0]
            ),
        }
        if biased:
            bias = self._bias("mlp.w", both) + self._norm_bias("n2", both)
            state[to + "gate_proj.bias"], state[to + "up_proj.bias"] = bias.chunk(2)
            state[to + "down_proj.bias"] = self._bias(down_name.removeprefix(self.at), down)
        return {name: value.contiguous() for name, value in state.items()}

    def _bias(self, name: str, weight: Tensor) -> Tensor:
        name = f"{self.at}{name}.bias"
        return self.read(name) if name in self.names else torch.zeros_like(weight[:, 0])

    def _norm_bias(self, norm: str, weight: Tensor) -> Tensor:
        """What a norm's bias becomes behind the matrix that reads it: a Llama norm has none."""
        name = f"{self.at}{norm}.bias"
        if name not in self.names:
            return torch.zeros_like(weight[:, 0])
        return (weight.double() @ self.read(name).double()).to(weight.dtype)


def _sizes(config: Config) -> dict[str, int]:
    missing = [key for key in SIZES if type(config.get(key)) is not int or config[key] < 1]
    if missing:
        raise CheckpointError(
            f"config.json has no positive whole number for {missing}: the packed layout needs "
            f"{list(SIZES)}"
        )
    size = {key: config[key] for key in SIZES}
    if size["d_model"] % (2 * size["n_head"]):
        raise CheckpointError(
            f"config.json: d_model {size['d_model']} does not divide into {size['n_head']} heads "
            "of even size (n_head)"
        )
    return size


def _require_known(config: Config) -> None:
    """What the configuration may ask for; a Llama computes nothing else."""
    allowed = {
        "normalization": (True, (True,), "Llama always has its norms: a norm-free model has none"),
        "bilinear": (True, (True,), "an MLP without a gate is no bilinear layer"),
        "scale_attn": (True, (True, False), "the attention scale would be unknown"),
        "bias": (False, (True, False), "whether there are biases would be unknown"),
        "gate": (None, tuple(GATES), "no Llama activation is known for it"),
    }
    for key, (default, values, reason) in allowed.items():
        value = config.get(key, default)
        if not any(
            value is known or (isinstance(known, str) and value == known) for known in values
        ):
            raise CheckpointError(
                f"config.json: {key} is {value!r}, and the packed layout is read for "
                f"{' or '.join(map(repr, values))} only ({reason}). If the file says it wrongly, "
                "correct config.json; otherwise this model cannot be loaded exactly"
            )


def _down(at: str, names: Collection[str]) -> str:
    """The MLP's output matrix: `p`, in older files `o`."""
    return at + ("mlp.o" if at + "mlp.o.weight" in names else "mlp.p")


def _norm_shapes(name: str, d_model: int) -> dict[str, Shape]:
    return {name + ".weight": (d_model,), name + ".bias": (d_model,)}


def _has_bias(names: Collection[str], part: str, norm: str) -> bool:
    return any(
        name.startswith("transformer.h.")
        and name.endswith(".bias")
        and (f".{part}." in name or f".{norm}." in name)
        for name in names
    )


def _gain(norm: str, names: Collection[str], read: Read, like: Tensor) -> Tensor:
    name = norm + ".weight"
    return read(name) if name in names else torch.ones_like(like)


def _scaled(value: Tensor, scale: float) -> Tensor:
    return value if scale == 1 else (value.double() * scale).to(value.dtype)


def _is_rotation(name: str) -> bool:
    return name.endswith("rotary.inv_freq")


def _require_rotation(name: str, stored: Tensor, d_head: int) -> None:
    steps = torch.arange(0, d_head, 2, dtype=torch.float64) / d_head
    # Half-precision buffers carry their rounding; another base differs by far more.
    if not torch.allclose(stored.double(), ROPE_BASE**-steps, rtol=1e-2, atol=0):
        raise CheckpointError(
            f"{name} is not a rotation with base {ROPE_BASE:g}: this file's positions are "
            "encoded in another way, which the packed layout does not know"
        )


def _require_zero(name: str, names: Collection[str], read: Read) -> None:
    if name in names and read(name).count_nonzero():
        raise CheckpointError(
            f"{name} is not zero, and a Llama has no place for it: this model cannot be loaded "
            "exactly"
        )


LAYOUT = PackedLayout()
