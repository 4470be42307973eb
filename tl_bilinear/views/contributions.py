"""Direct effects of all components of a model, as a bar chart and as a table."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from tl_bilinear.views.figure import NEGATIVE, NEUTRAL, POSITIVE, new_figure, style
from tl_bilinear.views.table import Cell, Markup, table
from tl_bilinear.views.text import scientific, signed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Contributions:
    """What each component adds to one target, in logits."""

    embedding: float
    heads: Float[Tensor, "layer head"]
    attention_bias: Float[Tensor, " layer"]
    mlps: Float[Tensor, " layer"]
    bias: float
    """Unembedding bias and final norm's bias."""
    target: float
    """The model's own value, from its logits."""

    @property
    def total(self) -> float:
        layers = self.heads.sum() + self.attention_bias.sum() + self.mlps.sum()
        return float(self.embedding + layers + self.bias)

    @property
    def discrepancy(self) -> float:
        """Target minus total."""
        return self.target - self.total


def contribution_figure(contributions: Contributions) -> "Figure":
    """One bar per component group in the order in which they write, then the target."""
    attention = contributions.heads.sum(-1) + contributions.attention_bias
    names, values = ["embedding"], [contributions.embedding]
    for layer, (heads, mlp) in enumerate(zip(attention, contributions.mlps, strict=True)):
        names += [f"L{layer} heads", f"L{layer} MLP"]
        values += [float(heads), float(mlp)]
    names += ["output biases", "model's own value"]
    values += [contributions.bias, contributions.target]
    with style():
        figure = new_figure(6.4, 0.22 * len(names) + 0.7)
        axes = figure.add_subplot()
        colors = [POSITIVE if value >= 0 else NEGATIVE for value in values]
        colors[-1] = NEUTRAL
        axes.barh(range(len(names)), values, color=colors, height=0.7)
        axes.axvline(0, color="black", linewidth=0.7)
        for row, value in enumerate(values):
            axes.annotate(
                signed(value, 2),
                (value, row),
                xytext=(3 if value >= 0 else -3, 0),
                textcoords="offset points",
                ha="left" if value >= 0 else "right",
                va="center",
                fontsize=8,
            )
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.margins(x=0.14, y=0.01)
        axes.set_xlabel("direct effect on the target (logits)")
    return figure


def contribution_table(contributions: Contributions) -> str:
    """Heads by layer, MLP by layer, and the closing sum, as HTML."""
    n_heads = contributions.heads.shape[1]
    biased = bool(contributions.attention_bias.abs().max() > 0)
    scale = float(max(contributions.heads.abs().max(), contributions.mlps.abs().max()))
    header: list[Cell] = ["layer", *(f"h{head}" for head in range(n_heads))]
    header += ["bias"] if biased else []
    header += ["all heads", "MLP", "layer"]
    rows: list[list[Cell]] = []
    for layer, heads in enumerate(contributions.heads.tolist()):
        mlp = float(contributions.mlps[layer])
        bias = float(contributions.attention_bias[layer])
        row: list[Cell] = [f"L{layer}", *(heat(value, scale) for value in heads)]
        row += [heat(bias, scale)] if biased else []
        attention = sum(heads)
        row += [signed(attention, 3), heat(mlp, scale), signed(attention + bias + mlp, 3)]
        rows.append(row)
    grid = table(
        header,
        rows,
        caption="Direct effect of each head and each MLP on the target, in logits. "
        "h0 is head 0. Blue pushes the target up, orange down.",
        dense=True,
    )
    return grid + _closing(contributions)


def heat(value: float, scale: float) -> Markup:
    """A number on blue (positive) or orange (negative), as strong as |value| / scale."""
    strength = min(1.0, abs(value) / scale) if scale > 0 else 0.0
    red, green, blue = (107, 174, 214) if value >= 0 else (244, 162, 89)
    return Markup(signed(value, 3), f"background:rgba({red},{green},{blue},{strength:.2f})")


def _closing(contributions: Contributions) -> str:
    attention = float(contributions.heads.sum())
    rows = [
        ["embedding", signed(contributions.embedding)],
        ["all heads of all layers", signed(attention)],
        ["attention biases", signed(float(contributions.attention_bias.sum()))],
        ["all MLPs", signed(float(contributions.mlps.sum()))],
        ["unembedding bias and final norm's bias", signed(contributions.bias)],
        ["sum of the above", signed(contributions.total)],
        ["the model's own value, from its logits", signed(contributions.target)],
        ["discrepancy (rounding)", scientific(contributions.discrepancy)],
    ]
    return table(["part", "logits"], rows, caption="The sum, in logits.", total_rows=3)
