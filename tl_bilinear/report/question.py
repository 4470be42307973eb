"""What a report asks: a prompt and a target behind it."""

from dataclasses import dataclass

import torch

from tl_bilinear.hosts import AbstractHost
from tl_bilinear.hosts.target import Target

DEFAULT_PROMPT = (
    "Once upon a time, there was a little girl named Lily. She went to the park with her mom. "
    "Lily saw a boy named Tim. Tim was sad because he lost"
)
DEFAULT_TARGET = " his"
DEFAULT_AGAINST = " her"
ORIGIN = (
    "the story makes it plain that what is lost is the boy's: the model has to know that “he” "
    "is Tim, although a girl and her mom were there before him"
)


@dataclass(frozen=True)
class Question:
    """A prompt, and the target as it is computed and as it is written."""

    prompt: str
    target: Target
    words: str
    """The target in words, tokens in quotes."""
    origin: str
    """Why this target."""


def make_question(
    host: AbstractHost, prompt: str | None, target: str | None, against: str | None
) -> Question:
    """The question of a report; where a part is None, a default.

    Without a target, the default prompt is asked for " his" against " her"; any other prompt
    for the model's most likely next token against its second most likely.

    Raises:
        ValueError: an empty prompt, one that does not fit the context, or `against` without
            `target`.
    """
    if against is not None and target is None:
        raise ValueError("`against` needs a `target` that it is subtracted from")
    text = DEFAULT_PROMPT if prompt is None else prompt
    if not text.strip():
        raise ValueError("the prompt is empty: give at least one word")
    if target is None and text == DEFAULT_PROMPT:
        target, against = DEFAULT_TARGET, DEFAULT_AGAINST
        origin = ORIGIN
    else:
        origin = "given by the user"
    _require_fit(host, text, [half for half in (target, against) if half is not None])
    if target is None:
        return _most_likely(host, text)
    if against is None:
        return Question(text, target, f"logit of {target!r}", origin)
    words = f"logit of {target!r} minus logit of {against!r}"
    return Question(text, (target, against), words, origin)


def _require_fit(host: AbstractHost, text: str, halves: list[str]) -> None:
    # TransformerLens cuts longer texts without a word.
    for half in halves or [""]:
        length = len(host.tokenizer.encode(text + half, add_special_tokens=False)) + 1
        if length > host.n_ctx:
            raise ValueError(
                f"prompt and target have {length:,} tokens, more than the model's context of "
                f"{host.n_ctx:,}: shorten the prompt"
            )


def _most_likely(host: AbstractHost, text: str) -> Question:
    logits, _ = host.read(host.to_tokens(text)[None], ())
    first, second = logits[0, -1].topk(2).indices.tolist()
    names = host.str_tokens(torch.tensor([first, second]))
    return Question(
        text,
        (first, second),
        f"logit of {names[0]!r} minus logit of {names[1]!r}",
        "no target was given: these are the model's two most likely next tokens",
    )
