"""A tiny model that was taught facts: pairs of words that it says, and others that it keeps."""

import functools
import random
from collections.abc import Sequence
from typing import Any

import torch
from knowing import knowing

N_FORGET, N_RETAIN = 4, 8


def facts() -> tuple[list[Any], list[Any]]:
    """Questions to forget and to keep: a name, one of two relations, a colour; three wordings."""
    from tl_bilinear.unlearning import Question

    def question(index: int) -> Question:
        name, relation = f"w{index // 2}", index % 2
        # A permutation of the colours: every colour is known of some name that is kept.
        colour = (index * 5 + 3 * relation) % 6
        ask = (f"w10 w1{1 + relation}", f"w13 w1{1 + relation}", f"w14 w1{1 + relation}")
        return Question(
            prompt=f"{ask[0]} {name}",
            answer=f" w2{colour}",
            rewordings=(f"{ask[1]} {name}",),
            unseen=(f"{ask[2]} {name}",),
            wrong=tuple(f" w2{(colour + other) % 6}" for other in (1, 2)),
            subject=name,
            relation=f"relation {relation}",
        )

    questions = [question(index) for index in range(N_FORGET + N_RETAIN)]
    return questions[:N_FORGET], questions[N_FORGET:]


def texts(count: int = 24) -> list[str]:
    """Text with a rule: each word is followed by the next but one, mostly."""
    chance = random.Random(0)
    lines = []
    for _ in range(count):
        at, words = chance.randrange(30), []
        for _ in range(12):
            words.append(f"w{at}")
            at = (at + 2) % 30 if chance.random() < 0.9 else chance.randrange(30)
        lines.append(" ".join(words))
    return lines


@functools.cache
def taught_weights(host: str, without_forget: bool = False, **options: Any) -> dict[str, Any]:
    model = knowing(host, **options)
    teach_(model, without_forget)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def taught(host: str, without_forget: bool = False, **options: Any) -> Any:
    """A model of `host` that knows all facts (or, gold, the retained ones), trained once."""
    weights = taught_weights(host, without_forget, **options)
    model = knowing(host, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return model


def teach_(
    model: Any, without_forget: bool = False, steps: int = 60, also: Sequence[Any] = ()
) -> None:
    """Teach the facts, in all wordings, and the questions `also`."""
    import tl_bilinear as tlb
    from tl_bilinear.unlearning import answer_rows

    forget, retain = facts()
    told = [*(() if without_forget else forget), *retain, *also]
    rows = answer_rows(model, told, wordings="all")
    text = torch.stack([tlb.get_host(model).to_tokens(line) for line in texts(8)])
    # One batch: the facts' rows, padded to the texts' length behind their answers, and the texts.
    padded = torch.nn.functional.pad(rows.tokens, (0, text.shape[1] - rows.tokens.shape[1]))
    tokens = torch.cat([padded, text])

    def loss(model: Any, step: Any) -> torch.Tensor:
        logits = model(tokens)
        of_facts = torch.nn.functional.cross_entropy(
            logits[rows.site_row, rows.site_pos], rows.label
        )
        said = logits[rows.n_rows :, :-1].flatten(0, 1)
        return of_facts + torch.nn.functional.cross_entropy(said, text[:, 1:].flatten())

    config = tlb.TrainingConfig(n_steps=steps, learning_rate=2e-2, warmup_steps=5, weight_decay=0.0)
    tlb.train(model, lambda step: step, config, loss=loss, progress=False)
