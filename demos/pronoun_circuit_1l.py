"""Whose pronoun comes next? A one-layer model's circuit, from its weights, confirmed by patching.

`stories-1l` has one attention and one bilinear MLP layer, so it is a sum of a handful of paths. At
the end of a sentence it writes " She" behind stories of a girl and " He" behind stories of a boy.
From the weights: which paths say so, and what they multiply. By patching, on stories that nothing
was trained on: does swapping what one head carries swap the pronoun?

    python demos/pronoun_circuit_1l.py              # prints the tables
    python demos/pronoun_circuit_1l.py -o figures   # and writes the circuit's picture and page
"""

import argparse
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import tl_bilinear as tlb
from tl_bilinear.checkpoints.bundled import bundled_stories

MODEL = "stories-1l"
TARGET = (" She", " He")
PROMPT = "Once upon a time, there was a little girl named Lily."
SWAPS = [
    ("girl", "boy"),
    ("Lily", "Tim"),
    ("Lucy", "Ben"),
    ("mom", "dad"),
    ("she", "he"),
    ("her", "his"),
    ("She", "He"),
]
SWAP = dict(SWAPS) | {b: a for a, b in SWAPS} | {"him": "her"}
N_CONTROLS = 20


def swapped(text: str) -> str:
    """The same story of a boy, or of a girl."""
    return re.sub(r"\w+", lambda word: SWAP.get(word.group(), word.group()), text)


def held_out(model: Any) -> Iterator[tuple[str, str, float]]:
    """Stories up to a sentence's end behind which a pronoun follows; the swapped ones; its sign."""
    for story in bundled_stories():
        for match in re.finditer(r"\. (She|He) ", story):
            prompt = story[: match.start() + 1]
            if len(prompt) > 400 or ("girl" in prompt) == ("boy" in prompt):
                continue
            other = swapped(prompt)
            if model.to_tokens(prompt).shape == model.to_tokens(other).shape:
                yield prompt, other, 1.0 if match.group(1) == "She" else -1.0
            break


def difference(model: Any, tokens: torch.Tensor, hooks: list | None = None) -> float:
    """Logit of " She" minus that of " He" behind the tokens, the mean over rows."""
    she, he = (model.to_tokens("a" + word)[0, -1] for word in TARGET)
    with torch.no_grad(), model.hooks(fwd_hooks=hooks or []):
        logits = model(tokens)[:, -1]
    return float((logits[:, she] - logits[:, he]).mean())


def putting(value: torch.Tensor, *heads: int) -> Callable[..., torch.Tensor]:
    """A hook that gives some heads a value [row, head, d_head] at the last position."""

    def put(z: torch.Tensor, hook: Any) -> torch.Tensor:
        z = z.clone()
        z[:, -1, list(heads)] = value.to(z)
        return z

    return put


def weights_say(model: Any, console: Console) -> int:
    """The paths of the prompt and of its twin, and the head that tells them apart."""
    paths = tlb.expand_paths(model)
    prompts = [PROMPT, swapped(PROMPT)]
    values = [paths.on_prompt(prompt, TARGET) for prompt in prompts]
    girl, boy = (each.values[0, 0] for each in values)
    assert max(float(each.discrepancy.abs().max()) for each in values) < 1e-3
    order = (girl - boy).abs().argsort(descending=True)
    table = Table("path", "girl", "boy", "girl minus boy", title=f"{TARGET[0]} minus {TARGET[1]}")
    for i in order[:8].tolist():
        row = (girl[i], boy[i], girl[i] - boy[i])
        table.add_row(values[0].terms[i], *(f"{float(x):+.3f}" for x in row))
    every = (girl.sum(), boy.sum(), (girl - boy).sum())
    table.add_row("all paths: the model's logits", *(f"{float(x):+.3f}" for x in every))
    console.print(table)
    host = tlb.get_host(model)
    with_head = [
        sum(
            float((girl - boy)[i]) for i, term in enumerate(values[0].terms) if f"OV{head} " in term
        )
        for head in range(host.n_heads)
    ]
    head = max(range(host.n_heads), key=lambda each: with_head[each])
    alone = f"W_U OV{head} W_E"
    linear = float((girl - boy)[values[0].terms.index(alone)])
    console.print(
        f"Paths through head {head} hold {with_head[head]:+.2f} of {float((girl - boy).sum()):+.2f}"
        f"; only {linear:+.2f} of it is the head's own path to the logits. The rest are products "
        "with another part of the stream: what the head carries is multiplied."
    )
    return head


def patching_says(model: Any, head: int, console: Console) -> None:
    """Swap each head's value at the last position; then take away what it is multiplied with."""
    host = tlb.get_host(model)
    site = host.head_site(0)
    stories = list(held_out(model))
    others = [each for each in range(host.n_heads) if each != head]
    names = ["as it is", "whole story swapped"]
    names += [f"head {each} swapped" for each in range(host.n_heads)]
    names += [f"{N_CONTROLS} random changes as large as head {head}'s"]
    names += [f"heads {others} as in mid-sentence", f"the same, and head {head} swapped"]
    rows = []
    generator = torch.Generator().manual_seed(0)
    for prompt, other, sign in stories:
        tokens, swap = model.to_tokens(prompt), model.to_tokens(other)
        mine, theirs = (host.read(each, [site])[1][site][0] for each in (tokens, swap))
        change = theirs[-1, head] - mine[-1, head]
        row = [difference(model, tokens), difference(model, swap)]
        row += [
            difference(model, tokens, [(site, putting(theirs[None, -1, [each]], each))])
            for each in range(host.n_heads)
        ]
        noise = torch.randn(N_CONTROLS, *change.shape, generator=generator).to(change)
        noise = noise / noise.norm(dim=-1, keepdim=True) * change.norm()
        hook = (site, putting((mine[-1, head] + noise)[:, None], head))
        row.append(difference(model, tokens.expand(N_CONTROLS, -1), [hook]))
        elsewhere = mine[len(mine) // 2]
        row.append(difference(model, tokens, [(site, putting(elsewhere[None, others], *others))]))
        both = torch.cat([elsewhere[others], theirs[-1, [head]]])
        row.append(difference(model, tokens, [(site, putting(both[None], *others, head))]))
        rows.append([sign * value for value in row])
    found = torch.tensor(rows)
    table = Table("at the last position", "mean", "right pronoun", title=f"{len(rows)} stories")
    for name, column in zip(names, found.T, strict=True):
        table.add_row(name, f"{column.mean():+.2f}", f"{(column > 0).float().mean():.0%}")
    console.print(table)
    effect = (found[:, 0] - found[:, 2 + head]).mean()
    without = (found[:, -2] - found[:, -1]).mean()
    console.print(
        "Logit difference towards the story's own pronoun. Swapping head "
        f"{head} costs {effect:.2f}; with the other heads as in mid-sentence it costs {without:.2f}"
        ": they say when, it says whose, and the MLP multiplies the two."
    )


def pictures(circuit: tlb.Circuit, drawn: tlb.Circuit, folder: Path, name: str) -> list[Path]:
    """A page of the circuit, to read, and a figure of what is `drawn` of it, for a paper."""
    folder.mkdir(parents=True, exist_ok=True)
    figure, page = folder / f"{name}.svg", folder / f"{name}.html"
    tlb.views.save_figure(tlb.views.circuit_figure(drawn), figure)
    page.write_text(tlb.views.circuit_page(circuit), encoding="utf-8")
    return [figure, page]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, help="a folder for the circuit's pictures")
    given = parser.parse_args()
    console = Console(width=100)
    model = tlb.load(MODEL)
    patching_says(model, weights_say(model, console), console)
    if given.output is not None:
        circuit = tlb.read_modes(model, tlb.trace_circuit(model, PROMPT, TARGET, max_nodes=14))
        console.print("written:", *pictures(circuit, circuit, given.output, "pronoun_circuit_1l"))


if __name__ == "__main__":
    main()
