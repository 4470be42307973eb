"""How positions rotate queries and keys, as one matrix per position.

A rotary model's score of a query at q and a key at k is (W_Q x_q) R_q R_k^T (W_K x_k), and
R_q R_k^T depends on q - k alone. The matrices are made of the numbers that the model itself uses:
a HookedTransformer's and a native bridge's own tables, the hooks of a transformers bridge.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts.host import AbstractHost


def is_rotary(host: AbstractHost) -> bool:
    return getattr(host.model.cfg, "positional_embedding_type", None) == "rotary"


def rotation_hooks(host: AbstractHost, layer: int) -> list[str]:
    """The hooks that `rotations` needs; only a bridge around a transformers model has any."""
    names = [f"blocks.{layer}.attn.hook_{name}" for name in ("cos", "sin")]
    return names if is_rotary(host) and names[0] in host.model.hook_dict else []


def rotations(
    host: AbstractHost, layer: int, n_pos: int, values: Mapping[str, Tensor]
) -> Float[Tensor, "n_pos d_head d_head"]:
    """R with `q @ R[p]` the rotated query at position p; identities where nothing rotates.

    Args:
        values: of `rotation_hooks`, from a run over at least n_pos tokens.
    """
    eye = torch.eye(host.d_head, dtype=torch.float64, device=host.device)
    eye = eye.expand(n_pos, -1, -1)  # [pos, basis vector, d_head]
    if not is_rotary(host):
        return eye
    attention = host._block(layer).attn
    if hasattr(attention, "apply_rotary"):  # HookedTransformer: [batch, pos, head, d_head]
        return attention.apply_rotary(eye[None])[0].detach().double()
    hooks = rotation_hooks(host, layer)
    if not hooks:  # native: [batch, head, pos, d_head]
        rotary = attention.original_component.rotary
        by_head = eye.transpose(0, 1)[None]
        return rotary.apply_rope(by_head, by_head)[0][0].transpose(0, 1).detach().double()
    cos, sin = (values[hook][0, :n_pos].double()[:, None] for hook in hooks)
    return _rotate(eye, cos, sin, bool(getattr(host.model.cfg, "rotary_adjacent_pairs", False)))


def read_rotations(
    host: AbstractHost, layer: int, n_pos: int
) -> Float[Tensor, "n_pos d_head d_head"]:
    """`rotations` without a prompt; costs a forward pass on a transformers bridge."""
    hooks = rotation_hooks(host, layer)
    values: Mapping[str, Tensor] = {}
    if hooks:
        tokens = torch.zeros(1, n_pos, dtype=torch.long)
        _, values = host.read(tokens, hooks, attention_mask=torch.ones_like(tokens))
    return rotations(host, layer, n_pos, values)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, adjacent: bool) -> Tensor:
    """As transformers' apply_rotary_pos_emb, of the first dimensions only where cos has fewer."""
    turned, kept = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    if adjacent:  # pairs (0, 1), (2, 3), ...; cos has each frequency's half twice
        half = cos.shape[-1] // 2
        cos, sin = (table[..., :half].repeat_interleave(2, -1) for table in (cos, sin))
        flipped = torch.stack((-turned[..., 1::2], turned[..., 0::2]), -1).flatten(-2)
    else:
        first, second = turned.chunk(2, -1)
        flipped = torch.cat((-second, first), -1)
    return torch.cat((turned * cos + flipped * sin, kept), -1)
