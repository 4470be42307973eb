"""What users may give as a prompt: one text, several, or token ids."""

from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.hosts.padding import require_no_left_padding

Prompt = str | Int[Tensor, " pos"]
Text = str | Sequence[str] | Tensor | Sequence[Tensor]


def split_prompts(text: Text) -> list[Prompt]:
    """One prompt per row: a text, several texts, or token ids [pos] or [batch, pos].

    Raises:
        ValueError: no prompt, an empty one, or something else.
    """
    if isinstance(text, str):
        prompts: list[Prompt] = [text]
    elif isinstance(text, Tensor):
        if text.ndim not in (1, 2) or text.is_floating_point():
            raise ValueError(
                "tokens must be integers of shape [pos] or [batch, pos], got "
                f"{text.dtype} {list(text.shape)}"
            )
        prompts = [text] if text.ndim == 1 else list(text)
    else:
        prompts = list(text)
    good = [isinstance(p, str) or (isinstance(p, Tensor) and p.ndim == 1) for p in prompts]
    if not prompts or not all(good):
        raise ValueError("give a text, a list of texts, or token ids [pos] or [batch, pos]")
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt is empty: there is no position to read at")
    return prompts


def tokenize(host: AbstractHost, prompts: Sequence[Prompt]) -> list[Tensor]:
    """Token ids [pos] of every prompt.

    Raises:
        ValueError: token ids that begin with padding.
    """
    rows = [host.to_tokens(p) if isinstance(p, str) else p.detach().cpu() for p in prompts]
    for row, prompt in zip(rows, prompts, strict=True):
        if not isinstance(prompt, str):
            require_no_left_padding(host.model.tokenizer, row[None])
    return rows


def one_prompt(host: AbstractHost, text: Text, name: str = "text") -> Int[Tensor, " pos"]:
    """Token ids of one prompt, under the name of the argument that it was given as.

    Raises:
        ValueError: several prompts, an empty one, or token ids that begin with padding.
    """
    prompts = split_prompts(text)
    if len(prompts) != 1:
        raise ValueError(f"`{name}` must be one prompt, got {len(prompts)}: give them one by one")
    return tokenize(host, prompts)[0]


def require_in_context(host: AbstractHost, length: int, name: str = "a prompt") -> None:
    """Raise ValueError for a prompt that is longer than the model's context."""
    if length > host.n_ctx:
        raise ValueError(
            f"{name} of {length} tokens (target included) does not fit the model's context of "
            f"{host.n_ctx}: shorten it"
        )


def token_names(host: AbstractHost, tokens: Int[Tensor, " pos"]) -> list[str]:
    """Each token's exact text; its id where there is no tokenizer."""
    if host.model.tokenizer is None:
        return [str(token) for token in tokens.tolist()]
    return host.str_tokens(tokens) if len(tokens) else []
