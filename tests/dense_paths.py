"""A one-layer model's path expansion as dense tensors over tokens, written out from the weights."""

from typing import Any

import torch


class Dense:
    """Every term of a one-layer model as a dense tensor [output, *arguments], denominators one."""

    def __init__(self, model: Any, case: str):
        self.centred = case.startswith("LN")
        block = model.blocks[0]
        self.w_u, self.b_u = model.W_U, model.b_U if model.b_U is not None else 0
        self.mlp = block.mlp
        self.final = model.ln_final if hasattr(model, "ln_final") else None
        attention, ln1, self.ln2 = block.attn, block.ln1, block.ln2
        tables = {"W_E": model.W_E}
        if case != "RMS":
            tables["W_pos"] = model.pos_embed.W_pos
        self.sources = dict(tables)
        groups = len(attention.W_Q) // len(attention.W_V)
        constant = attention.b_O.clone()
        for head in range(2):
            w_v, b_v = attention.W_V[head // groups], attention.b_V[head // groups]
            for name, table in tables.items():
                value = self.gain(ln1, table) @ w_v
                self.sources[f"OV{head} {name}"] = value @ attention.W_O[head]
            constant += (self.offset(ln1) @ w_v + b_v) @ attention.W_O[head]
        self.sources["b_attn"] = constant[None]

    def gain(self, norm: Any, x: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        w = getattr(norm, "w", None) if hasattr(norm, "w") else getattr(norm, "weight", None)
        return x if w is None else x * w

    def offset(self, norm: Any) -> torch.Tensor:
        b = getattr(norm, "b", None) if hasattr(norm, "b") else getattr(norm, "bias", None)
        return torch.zeros(8, dtype=torch.float64) if b is None else b

    def unembed(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain(self.final, x) @ self.w_u

    def legs(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        mlp = self.mlp
        if name == "1":
            b = self.offset(self.ln2)
            return (b @ mlp.W_gate + mlp.b_gate)[None], (b @ mlp.W_in + mlp.b_in)[None]
        x = self.gain(self.ln2, self.sources[name])
        return x @ mlp.W_gate, x @ mlp.W_in

    def term(self, name: str) -> torch.Tensor:
        """[first argument, second argument, output]; an argument that is not there has size one."""
        if name == "b_U":
            return (self.offset(self.final) @ self.w_u + self.b_u)[None, None]
        inner = name.removeprefix("W_U ")
        if inner in self.sources:
            return self.unembed(self.sources[inner])[:, None]
        first, second = inner.removeprefix("B(").removesuffix(")").split(", ")
        (left, right), (other_left, other_right) = self.legs(first), self.legs(second)
        product = left[:, None] * other_right + right[:, None] * other_left
        if first == second:
            product = product / 2
            if not first.startswith("OV"):  # one token: the diagonal
                product = product.diagonal().T[:, None]
        stream = product @ self.mlp.W_out
        if first == second == "1":
            stream = stream + self.mlp.b_out
        return self.unembed(stream)
