"""A target that is read at one place: one token, a difference of two, or a direction."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.hosts.target import Target, make_readouts, readout_bias


@dataclass(frozen=True, eq=False)
class TokenTarget:
    """What a term is read along, without a prompt."""

    label: str
    u: Float[Tensor, " d_model"]
    """The direction in the stream, the final norm folded in."""
    bias: float
    """What no input reaches: the unembedding's and the final norm's bias."""


def token_target(host: AbstractHost, target: Target) -> TokenTarget:
    """A target as it stands behind any prompt.

    Raises:
        ValueError: an unknown or empty target, or one of several tokens, which is read at several
            places of a prompt.
    """
    readouts = list(make_readouts(host, target, ["a"]))
    if len(readouts) > 1 or readouts[0].prefix:
        raise ValueError(
            f"the target {target!r} has several tokens "
            f"({', '.join(readout.label for readout in readouts)}), which are read at different "
            "places: give one token, a pair of single tokens or a direction, or read it on a "
            "prompt (on_prompt)"
        )
    readout = readouts[0]
    u = host.fold_readout(readout.direction)
    return TokenTarget(readout.label, u, float(readout_bias(host, readout)))


def token_ids(host: AbstractHost, tokens: Iterable[int | str]) -> Int[Tensor, " n"]:
    """Ids of tokens that are given by id or by text.

    Raises:
        ValueError: no tokens, an id out of range, or a text that is not one token.
    """
    ids = []
    for token in tokens:
        if isinstance(token, str):
            whole = host.to_tokens("a" + token).tolist()
            before = host.to_tokens("a").tolist()
            if whole[: len(before)] != before or len(whole) != len(before) + 1:
                raise ValueError(
                    f"{token!r} is not one token of this model behind other text: begin it with a "
                    "space, or give a token id"
                )
            token = whole[-1]
        if not 0 <= token < len(host.W_E):
            raise ValueError(f"token {token} is out of range: there are {len(host.W_E)}")
        ids.append(int(token))
    if not ids:
        raise ValueError("no tokens were given: give token ids or texts")
    return torch.tensor(ids)
