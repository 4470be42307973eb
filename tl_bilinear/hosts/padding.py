"""Padding on the left of token ids, which a forward pass without a mask would attend to."""

from typing import Any

from jaxtyping import Int
from torch import Tensor


def require_no_left_padding(tokenizer: Any, tokens: Int[Tensor, "batch pos"]) -> None:
    """Raise ValueError for rows that begin with the tokenizer's pad token.

    Attended to, padding on the left makes every logit wrong on every host. One leading token is
    let through where BOS or EOS is the pad token: it is what the text begins with, unless BOS
    follows. Without a tokenizer nothing says what padding is.
    """
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None or not tokens.numel():
        return
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    leading = (tokens == pad).long().cumprod(1).sum(1)
    padded = leading > (1 if pad in (bos, eos) else 0)
    if pad != bos and bos is not None and tokens.shape[1] > 1:
        padded |= (leading == 1) & (tokens[:, 1] == bos)
    if padded.any():
        raise ValueError(
            f"rows {padded.nonzero()[:4, 0].tolist()} begin with padding (token {pad}), which is "
            "attended to. Give texts, each prompt without its padding, or an attention_mask (to "
            "host.read, and to the model itself)"
        )
