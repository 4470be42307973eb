"""Text coloured by a number per token, drawn by circuitsvis."""

from collections.abc import Sequence

from tl_bilinear.views.page import Page
from tl_bilinear.views.text import inert

# Light enough for circuitsvis to keep black letters on them.
POSITIVE = "#6baed6"
NEGATIVE = "#f4a259"


def colored_tokens(
    page: Page, tokens: Sequence[str], values: Sequence[float], bound: float | None = None
) -> str:
    """Add circuitsvis' ColoredTokens to a page; the number shows under the pointer.

    Args:
        bound: |value| at which the colour is full, in both directions; the largest |value|
            where it is None.

    Raises:
        ValueError: as many values as tokens are needed.
    """
    if len(tokens) != len(values):
        raise ValueError(f"{len(tokens)} tokens but {len(values)} values")
    limit = bound if bound is not None else max((abs(value) for value in values), default=0.0)
    limit = limit if 0 < limit < float("inf") else 1.0  # 0/0 would be drawn white on white
    return page.view(
        "ColoredTokens",
        {
            "tokens": [inert(token) for token in tokens],
            "values": [round(float(value), 4) for value in values],
            "minValue": -limit,
            "maxValue": limit,
            "negativeColor": NEGATIVE,
            "positiveColor": POSITIVE,
            "paddingBottom": 0,
        },
    )
