"""Lengths of a circuit's picture."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """In points of a figure or pixels of a page."""

    width: float
    """Of the picture; it grows only where there are too many columns."""
    font: float = 6.5
    small: float = 5.5
    box: float = 64.0
    """The widest box."""
    pad: float = 2.5
    gap: float = 4.0
    """Around things, and half of what lies between two boxes: lines pass there."""
    wire: float = 14.0
    """Between bands: room for lines to turn."""
    lane: float = 12.0
    """Between the labels of heads, one above the other."""
    margin: float = 27.0
    """On the left, for the names of bands."""
    widest: float = 3.2
    """Of a line."""
