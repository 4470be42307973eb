"""The learning rate at a step: linear warm-up, then a decay."""

import math
from typing import Literal

Decay = Literal["cosine", "linear", "constant"]


def learning_rate(
    step: int,
    n_steps: int,
    peak: float,
    *,
    final: float = 0.0,
    warmup_steps: int = 0,
    decay: Decay = "cosine",
) -> float:
    """The rate at `step`: up to `peak` in `warmup_steps` equal steps, then down towards `final`.

    Args:
        decay: "cosine" is half a cosine, "linear" a straight line, both of which would reach
            `final` at step `n_steps`; "constant" stays at the peak.

    Raises:
        ValueError: an unknown decay.
    """
    if decay not in ("cosine", "linear", "constant"):
        raise ValueError(f'`decay` must be "cosine", "linear" or "constant", got {decay!r}')
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if decay == "constant":
        return peak
    share = min((step - warmup_steps) / max(1, n_steps - warmup_steps), 1.0)
    kept = 0.5 * (1 + math.cos(math.pi * share)) if decay == "cosine" else 1 - share
    return final + kept * (peak - final)
