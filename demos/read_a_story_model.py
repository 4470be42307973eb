"""Which eigenmodes of which MLP decide between " his" and " her"? `make demos` runs this.

Everything printed is computed here, offline, from the bundled bilinear story model.
"""

from rich.console import Console
from rich.table import Table

import tl_bilinear as tlb
from tl_bilinear.ablation import measure_ablation
from tl_bilinear.attribution import reading_tokens
from tl_bilinear.checkpoints.bundled import bundled_stories

PROMPT = (
    "Once upon a time, there was a little girl named Lily. She went to the park with her mom. "
    "Lily saw a boy named Tim. Tim was sad because he lost"
)
TARGET = (" his", " her")


def main() -> None:
    console = Console(width=110)
    model = tlb.load("stories-5l")
    console.print(str(tlb.self_check(model)))

    parts = tlb.attribute_components(model, PROMPT, TARGET)
    console.print(
        f"\nlogit of ' his' minus logit of ' her': {parts.target.sum():+.3f}; the sum of all "
        f"components' direct effects: {parts.total.sum():+.3f}"
    )

    seen = {t for text in (PROMPT, *bundled_stories()) for t in model.to_tokens(text)[0].tolist()}
    found = tlb.attribute_modes(model, PROMPT, TARGET, k=None)
    table = Table(title="modes with the largest direct effect (logits, final norm frozen)")
    for column in ("mode", "eigenvalue", "effect", "read most by tokens (+)", "(-)"):
        table.add_column(column)
    for mode, effect in found.top(6):
        reading = reading_tokens(model, mode, k=5, among=seen)
        positive, negative = (
            " ".join(repr(token) for token, _ in side)
            for side in (reading.positive, reading.negative)
        )
        name = mode.label.split(" ")[0]
        table.add_row(name, f"{mode.eigenvalue:+.3f}", f"{effect:+.3f}", positive, negative)
    console.print(table)

    mode = found.top(1)[0][0]
    effect = measure_ablation(model, PROMPT, TARGET, mode, bundled_stories()[:32])
    console.print(
        f"\nwithout {mode.label.split(' ')[0]} the difference goes from {effect.before:+.3f} to "
        f"{effect.after:+.3f}; foreseen with frozen norms: {effect.direct:+.3f}; of "
        f"{len(effect.controls)} random modes matched on root-mean-square contribution over "
        f"{effect.tokens} tokens, {effect.controls_as_large} change it as much"
    )


if __name__ == "__main__":
    main()
