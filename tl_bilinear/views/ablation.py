"""What ablating a mode does, beside matched random modes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tl_bilinear.views.figure import NEUTRAL, POSITIVE, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def ablation_figure(
    change: float, controls: Sequence[float], *, name: str, direct: float | None = None
) -> "Figure":
    """A strip plot of changes of a target, in logits.

    Args:
        change: with the mode ablated.
        controls: with each matched random mode ablated instead.
        name: of the mode.
        direct: the change that was foreseen with the norms frozen.
    """
    rows = [name, f"{len(controls)} random modes"]
    with style():
        figure = new_figure(6.4, 2.0)
        axes = figure.add_subplot()
        axes.axvline(0, color="black", linewidth=0.7)
        # Spread up and down in a fixed pattern so that equal values stay countable.
        heights = [1 + 0.22 * ((i % 5) - 2) / 2 for i in range(len(controls))]
        axes.scatter(controls, heights, s=26, facecolors="none", edgecolors=NEUTRAL, zorder=3)
        axes.scatter([change], [0], s=64, marker="D", color=POSITIVE, zorder=3, label="measured")
        if direct is not None:
            axes.scatter(
                [direct], [0], s=110, marker="|", color="black", zorder=4, label="foreseen, direct"
            )
            axes.legend(
                loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=8
            )
        axes.set_yticks([0, 1], rows)
        axes.set_ylim(1.5, -0.5)
        axes.margins(x=0.08)
        axes.set_xlabel("change of the target when it is ablated (logits)")
    return figure
