"""Several methods compared in several settings: means with their intervals, as dots with bars."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tl_bilinear.views.figure import NEUTRAL, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any colour vision.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "os^Dv*P"

Panels = Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]]


def interval_figure(
    panels: Panels,
    axis: str,
    *,
    limits: tuple[float, float] = (0.0, 1.0),
    mark: float | None = None,
) -> "Figure":
    """A panel per setting, a row per method, and a dot per series with its interval.

    Args:
        panels: by setting, method and series the mean and half the interval's width.
        axis: what is measured.
        limits: of the axis; intervals are cut there.
        mark: a thin line at this value, such as an aim.

    Raises:
        ValueError: no panel, no row, or more series than there are colours.
    """
    series = list(dict.fromkeys(s for rows in panels.values() for r in rows.values() for s in r))
    if not series or not all(panels.values()):
        raise ValueError("`panels` is empty: give at least one panel with one row and one series")
    if len(series) > len(SERIES):
        raise ValueError(f"{len(series)} series were given, at most {len(SERIES)} are told apart")
    tallest = max(len(rows) for rows in panels.values())
    n_rows = (len(panels) + 1) // 2
    with style():
        figure = new_figure(8.0, 0.7 + n_rows * (0.6 + 0.27 * tallest))
        grid = figure.subplots(n_rows, 2, squeeze=False, sharex=True).flatten()
        for axes, (title, rows) in zip(grid, panels.items(), strict=False):
            _draw(axes, rows, series, limits, mark)
            axes.set_title(title)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes in grid[max(0, len(panels) - 2) : len(panels)]:
            axes.set_xlabel(axis)
        handles, labels = {}, {}
        for axes in grid[: len(panels)]:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles[label], labels[label] = handle, label
        figure.legend(
            [handles[each] for each in series],
            series,
            loc="outside lower center",
            ncols=len(series),
            frameon=False,
        )
    return figure


def _draw(axes, rows, series, limits, mark) -> None:
    low, high = limits
    for place, name in enumerate(series):
        shift = (place - (len(series) - 1) / 2) * 0.8 / len(series)
        found = [(i, *row[name]) for i, row in enumerate(rows.values()) if name in row]
        if not found:
            continue
        heights = [i + shift for i, _, _ in found]
        means = [mean for _, mean, _ in found]
        reach = [
            [mean - max(low, mean - half) for _, mean, half in found],
            [min(high, mean + half) - mean for _, mean, half in found],
        ]
        axes.errorbar(
            means,
            heights,
            xerr=reach,
            fmt=MARKERS[place],
            color=SERIES[place],
            markersize=3.5,
            linewidth=0.8,
            label=name,
        )
    if mark is not None:
        axes.axvline(mark, color=NEUTRAL, linewidth=0.6, linestyle=":")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    margin = 0.03 * (high - low)
    axes.set_xlim(low - margin, high + margin)
