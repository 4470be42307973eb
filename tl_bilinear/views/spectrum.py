"""The eigenvalue spectrum of an interaction matrix."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tl_bilinear.decompositions import Eigendecomposition
from tl_bilinear.views.figure import NEGATIVE, POSITIVE, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAUGES = {
    "none": "gauge: none (Q as it stands)",
    "traceless": "gauge: traceless (Q minus its mean eigenvalue)",
}


def spectrum_figure(
    eigendecomposition: Eigendecomposition,
    *,
    title: str = "Spectrum of Q(u)",
    marked: Sequence[int] = (),
) -> "Figure":
    """Kept eigenvalues in the order of their size, blue above zero and orange below.

    Args:
        title: the gauge is written behind it.
        marked: indices of modes whose number is written at their bar.

    Raises:
        ValueError: a batch of decompositions, or an index that was not kept.
    """
    values = eigendecomposition.eigenvalues
    if values.ndim != 1:
        raise ValueError(
            f"one direction's spectrum is drawn, got a batch of shape {tuple(values.shape[:-1])}"
        )
    if any(not 0 <= index < len(values) for index in marked):
        raise ValueError(f"`marked` {list(marked)} names modes beyond the {len(values)} kept")
    heights = values.detach().double().cpu().tolist()
    with style():
        from matplotlib.ticker import MaxNLocator

        figure = new_figure(6.4, 2.5)
        axes = figure.add_subplot()
        colors = [POSITIVE if height >= 0 else NEGATIVE for height in heights]
        axes.bar(range(len(heights)), heights, color=colors, width=0.8)
        axes.axhline(0, color="black", linewidth=0.7)
        for index in marked:
            axes.annotate(
                str(index),
                (index, heights[index]),
                xytext=(0, 3 if heights[index] >= 0 else -3),
                textcoords="offset points",
                ha="center",
                va="bottom" if heights[index] >= 0 else "top",
                fontsize=8,
            )
        axes.margins(x=0.01, y=0.12)
        axes.set_xlabel("mode number (0 is the largest |λ|)")
        axes.set_ylabel("eigenvalue λ")
        axes.set_title(f"{title}; {GAUGES[eigendecomposition.gauge]}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure
