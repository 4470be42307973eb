"""Pictures of an unlearning report: relearning, layers, dose, methods side by side."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tl_bilinear.views.figure import NEGATIVE, NEUTRAL, POSITIVE, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINEAR_KL = 0.2
"""Nats per token: where the largest is no more, the axis of KL is linear."""

# Edited, unedited, gold: told apart by line and marker too, in grey as in colour.
LOOKS = {
    "edited": {"color": POSITIVE, "marker": "o", "linestyle": "-"},
    "unedited": {"color": NEUTRAL, "marker": "s", "linestyle": ":"},
    "gold": {"color": NEGATIVE, "marker": "^", "linestyle": "--"},
}


@dataclass(frozen=True)
class Line:
    """One model's curve."""

    name: str
    role: str
    """A key of LOOKS."""
    x: tuple[float, ...]
    y: tuple[float, ...]


def lines_figure(
    panels: Mapping[str, Sequence[Line]], x_label: str, y_label: str, *, log_y: bool = False
) -> "Figure":
    """Panels beside each other, each with its title, one legend below.

    Args:
        log_y: draw y + 1 on a logarithmic axis, for ranks, which may be 0.
    """
    with style():
        from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

        figure = new_figure(6.4, 2.6)
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        names: dict[str, object] = {}
        for axes, (title, lines) in zip(grid, panels.items(), strict=True):
            for line in lines:
                y = [value + 1 for value in line.y] if log_y else line.y
                drawn = axes.plot(
                    line.x, y, markersize=3, linewidth=1.2, label=line.name, **LOOKS[line.role]
                )
                names.setdefault(line.name, drawn[0])
            axes.set_title(title)
            axes.set_xlabel(x_label)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            if log_y:
                axes.set_yscale("log")
                # Not matplotlib's powers of ten, which are mathematical text.
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.yaxis.set_minor_formatter(NullFormatter())
            else:
                axes.set_ylim(-0.04, 1.04)
        grid[0].set_ylabel(y_label)
        figure.legend(
            handles=list(names.values()),
            loc="outside lower center",
            ncols=min(len(names), 4),
            frameon=False,
            fontsize=8,
        )
    return figure


@dataclass(frozen=True)
class Dot:
    """One dose: the text beside it, where it stands, and whether nothing beats it."""

    name: str
    forget: float
    cost: float
    best: bool


def dose_figure(dots: Sequence[Dot]) -> "Figure":
    """Forget accuracy against what it costs; the front is joined."""
    with style():
        figure = new_figure(6.4, 2.9)
        axes = figure.add_subplot()
        front = sorted((d for d in dots if d.best), key=lambda d: d.forget)
        axes.plot([d.forget for d in front], [d.cost for d in front], color=POSITIVE, linewidth=1)
        for dot in dots:
            face = POSITIVE if dot.best else "none"
            axes.scatter([dot.forget], [dot.cost], s=34, facecolors=face, edgecolors=POSITIVE)
        _name(axes, [(d.forget, d.cost, f"×{d.name}") for d in dots])
        axes.set_xlabel("forget accuracy")
        axes.set_ylabel("1 − retained accuracy + KL")
        axes.set_xlim(-0.08, 1.12)
        axes.margins(y=0.2)
    return figure


@dataclass(frozen=True)
class MethodBar:
    """One method: three numbers with half-widths (0 where there is no interval)."""

    name: str
    forget: tuple[float, float]
    retained: tuple[float, float]
    kl: tuple[float, float]


def methods_figure(bars: Sequence[MethodBar]) -> "Figure":
    """Three panels: forget accuracy, retained accuracy, KL; one row per method.

    Where a method breaks the model, KL spans decades: its axis is then logarithmic above 0.001.
    """
    with style():
        figure = new_figure(6.4, 1.0 + 0.26 * len(bars))
        grid = figure.subplots(1, 3, sharey=True)
        places = range(len(bars))
        for axes, kind, title in zip(
            grid,
            ("forget", "retained", "kl"),
            ("forget accuracy", "retained accuracy", "KL per token"),
            strict=True,
        ):
            values = [getattr(bar, kind) for bar in bars]
            axes.errorbar(
                [value for value, _ in values],
                list(places),
                xerr=[half for _, half in values],
                fmt="o",
                markersize=4,
                color=POSITIVE,
                ecolor=NEUTRAL,
                elinewidth=1,
            )
            axes.set_title(title)
            axes.grid(axis="y", linewidth=0.4, color="#dddddd")
            axes.set_axisbelow(True)
            if kind != "kl":
                axes.set_xlim(-0.06, 1.06)
            else:
                _kl_axis(axes, max(value for value, _ in values))
        grid[0].set_yticks(list(places), [bar.name for bar in bars])
        grid[0].set_ylim(len(bars) - 0.5, -0.5)
    return figure


def _kl_axis(axes, largest: float) -> None:
    if largest <= LINEAR_KL:
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        axes.xaxis.set_major_formatter("{x:g}")  # the first stands beside another panel's last
        return
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("symlog", linthresh=1e-3, linscale=0.6)
    ticks = [0.0, *(10.0**k for k in range(-3, 1 + math.ceil(math.log10(largest))))]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(-4e-4, 2 * largest)
    axes.tick_params(axis="x", labelsize=7)


def _name(axes, places: Sequence[tuple[float, float, str]]) -> None:
    """Points that stand close together share one label."""
    height = max(y for _, y, _ in places) - min(y for _, y, _ in places) or 1.0
    names: list[tuple[float, float, list[str]]] = []
    for x, y, name in places:
        near = (n for n in names if abs(n[0] - x) < 0.05 and abs(n[1] - y) < 0.06 * height)
        group = next(near, None)
        if group is None:
            names.append((x, y, [name]))
        else:
            group[2].append(name)
    for x, y, several in names:
        axes.annotate(
            ", ".join(several), (x, y), textcoords="offset points", xytext=(5, 5), fontsize=8
        )
