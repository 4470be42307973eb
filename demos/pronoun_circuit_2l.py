"""The same question to a two-layer model: where is it decided whose pronoun comes next?

In `stories-2l` the answer passes through two layers: the tokens that name a girl or a boy, what
layer 0 makes of them where they stand, a head of layer 1 that carries it to the sentence's end. The
trace says so from the weights, for one prompt and its swapped twin, with nothing frozen; patching
one part after the other says whether it is so, on stories that nothing was trained on.

    python demos/pronoun_circuit_2l.py              # prints the tables
    python demos/pronoun_circuit_2l.py -o figures   # and writes the circuit's picture and page
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pronoun_circuit_1l import PROMPT, TARGET, difference, held_out, pictures, swapped
from rich.console import Console
from rich.table import Table

import tl_bilinear as tlb

MODEL = "stories-2l"
N_CONTROLS = 20


def trace_says(model: Any, console: Console) -> tuple["tlb.Circuit", int]:
    """The contrast of the two prompts, and the head of layer 1 that carries most of it."""
    contrast = tlb.trace_circuit(model, PROMPT, TARGET, corrupted=swapped(PROMPT), max_nodes=24)
    assert abs(contrast.discrepancy) < 1e-3
    table = Table(
        "part",
        "at",
        "share",
        title=f"{TARGET[0]} minus {TARGET[1]}, girl minus boy: nothing frozen",
    )
    for node in contrast.top(8):
        place = contrast.tokens[
            node.position if node.source_position is None else node.source_position
        ]
        table.add_row(node.label, repr(place), f"{node.share:+.3f}")
    table.add_row("the difference of the model's logits", "", f"{contrast.target:+.3f}")
    console.print(table)
    by_head: dict[int, float] = {}
    for node in contrast.nodes:
        if node.kind == "head" and node.layer == 1 and node.index is not None:
            by_head[node.index] = by_head.get(node.index, 0.0) + node.share
    head = max(by_head, key=lambda each: by_head[each])
    console.print(
        f"Kept: {contrast.kept_share:.0%} of the sum of |shares|. Of layer 1's heads, head {head} "
        f"carries {by_head[head]:+.2f} of {contrast.target:+.2f}."
    )
    return contrast, head


def put(value: torch.Tensor, positions: torch.Tensor, head: int | None = None) -> Callable:
    """A hook that gives some positions (of one head) other values."""

    def hook_function(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        changed = activation.clone()
        if head is None:
            changed[:, positions] = value[positions].to(changed)
        else:
            changed[:, positions, head] = value[positions, head].to(changed)
        return changed

    return hook_function


def patching_says(model: Any, head: int, console: Console) -> None:
    """Put one part's value from the swapped story into the story."""
    host = tlb.get_host(model)
    sites = [host.head_site(1), host.mlp_out_site(0), host.mlp_out_site(1), host.embedding_site()]
    heads, mlp_0, mlp_1, embedding = sites
    found: dict[str, list[float]] = {}
    generator = torch.Generator().manual_seed(0)
    stories = list(held_out(model))
    for prompt, other, sign in stories:
        tokens, swap = model.to_tokens(prompt), model.to_tokens(other)
        mine, theirs = (
            {s: v[0] for s, v in host.read(t, sites)[1].items()} for t in (tokens, swap)
        )
        named = (tokens != swap)[0].nonzero()[:, 0]
        last = torch.tensor([tokens.shape[1] - 1])
        random = torch.randperm(tokens.shape[1] - 1, generator=generator)[: len(named)]
        change = theirs[heads][last, head] - mine[heads][last, head]
        noise = torch.randn(change.shape, generator=generator).to(change)
        noisy = mine[heads].clone()
        noisy[last, head] += noise / noise.norm() * change.norm()
        parts = {
            "as it is": None,
            "whole story swapped": (embedding, put(theirs[embedding], named)),
            **{
                f"layer 1, head {each}, at the end": (heads, put(theirs[heads], last, each))
                for each in range(host.n_heads)
            },
            f"as large a random change of head {head}": (heads, put(noisy, last, head)),
            "layer 1, MLP, at the end": (mlp_1, put(theirs[mlp_1], last)),
            "layer 0, MLP, at the gendered words": (mlp_0, put(theirs[mlp_0], named)),
            "layer 0, MLP, at the end": (mlp_0, put(theirs[mlp_0], last)),
            "layer 0, MLP, at as many other places": (mlp_0, put(theirs[mlp_0], random)),
        }
        for name, hook in parts.items():
            value = sign * difference(model, tokens, [hook] if hook else None)
            found.setdefault(name, []).append(value)
    table = Table(
        "from the swapped story", "mean", "right pronoun", title=f"{len(stories)} stories"
    )
    for name, values in found.items():
        right = sum(value > 0 for value in values) / len(values)
        table.add_row(name, f"{sum(values) / len(values):+.2f}", f"{right:.0%}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, help="a folder for the circuit's pictures")
    given = parser.parse_args()
    console = Console(width=100)
    model = tlb.load(MODEL)
    contrast, head = trace_says(model, console)
    patching_says(model, head, console)
    if given.output is not None:
        circuit = tlb.read_modes(model, contrast)
        drawn = circuit.prune(max_nodes=12)
        console.print("written:", *pictures(circuit, drawn, given.output, "pronoun_circuit_2l"))


if __name__ == "__main__":
    main()
