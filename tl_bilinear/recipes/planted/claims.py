"""What the issue says that unlearning must show, held against what was measured."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tl_bilinear.recipes.planted import summary
from tl_bilinear.recipes.planted.summary import Row

METHOD = "fit_edit"
REPAIRED = "fit_edit + repair"
BASELINES = (
    *("hinge", "grad_diff", "npo", "rmu", "modes", "random_modes", "random_directions"),
    *("difference_of_means", "leace"),
)
TIMED = "benchmarks/fit_edit.md"
FORGOTTEN = 0.05
"""What counts as forgotten; baselines that forget as far are compared."""


@dataclass(frozen=True)
class Claim:
    """One sentence with its figures."""

    sentence: str
    measured: str
    met: bool | None
    """None where it was not measured here."""


def fold_claims(rows: Mapping[str, Row]) -> list[Claim]:
    """Ten of thirty names, over the folds; the worst fold decides.

    Args:
        rows: by method.
    """
    if not _stands(rows, METHOD):
        return []
    row = rows[METHOD]
    return [
        _at_most(
            "forget accuracy at most .05, seen wordings", row, summary.forget_accuracy, FORGOTTEN
        ),
        *(_unseen(rows, name) for name in (METHOD, REPAIRED) if _stands(rows, name)),
        _at_least("retained at least .99", row, summary.retain_accuracy, 0.99),
        _at_most("story KL at most .02", row, summary.story_kl, 0.02),
        Claim("rank at most 8 per layer", f"{row.largest_rank}", row.largest_rank <= 8),
        Claim("under 60 seconds on two cores", f"CPU s above; {TIMED} alone", None),
        *(_no_worse(rows, name) for name in (METHOD, REPAIRED) if _stands(rows, name)),
    ]


def name_claims(rows: Mapping[str, Row]) -> list[Claim]:
    """One name."""
    if not _stands(rows, METHOD):
        return []
    row = rows[METHOD]
    return [
        Claim("at most 64 modes", f"{row.most_terms}", row.most_terms <= 64),
        _at_most("forget accuracy 0", row, summary.forget_accuracy, 0.0),
        _at_least("retained at least .99", row, summary.retain_accuracy, 0.99),
        _at_most("story KL at most .005", row, summary.story_kl, 0.005),
        _at_most("unseen wordings at most .05", row, summary.forget_unseen, 0.05),
    ]


def harder_claims(rows: Mapping[str, Row]) -> list[Claim]:
    """After repair, against gold; the worst fold decides."""
    if not (_stands(rows, REPAIRED) and _stands(rows, "gold")):
        return []
    row, gold = rows[REPAIRED], rows["gold"]
    pairs = _pairs(row, gold, summary.forget_nll)
    nll = Claim(
        "forget NLL within 20 % of gold",
        _against(pairs),
        all(abs(ours - theirs) <= 0.2 * theirs for ours, theirs in pairs),
    )
    pairs = _pairs(row, gold, summary.probe)
    probe = Claim(
        "final-layer probe within .05 of gold",
        _against(pairs),
        all(abs(ours - theirs) <= 0.05 for ours, theirs in pairs) if pairs else None,
    )
    pairs = _pairs(row, gold, summary.relearning_steps)
    shown = " and ".join(
        summary.steps_text([pair[k] for pair in pairs]) + name
        for k, name in enumerate((" steps", " for gold"))
    )
    return [
        nll,
        probe,
        *(
            Claim(sentence, shown, all(ours >= share * theirs for ours, theirs in pairs))
            for sentence, share in (
                ("relearning takes at least half as many steps as gold", 0.5),
                ("relearning takes as many steps as gold", 1.0),
            )
        ),
    ]


def _unseen(rows: Mapping[str, Row], method: str) -> Claim:
    """Beside gold's: whoever guesses is right now and then, and may not meet this either."""
    sentence = _of(method, "forget accuracy at most .05, unseen wordings")
    claim = _at_most(sentence, rows[method], summary.forget_unseen, FORGOTTEN)
    if "gold" not in rows:
        return claim
    guessed = _shown(rows["gold"].values(summary.forget_unseen))
    return replace(claim, measured=f"{claim.measured}; gold {guessed}")


def _of(method: str, sentence: str) -> str:
    return f"{sentence}, repaired" if method == REPAIRED else sentence


def _stands(rows: Mapping[str, Row], name: str) -> bool:
    return name in rows and not rows[name].failed


def _no_worse(rows: Mapping[str, Row], method: str) -> Claim:
    """Cost, 1 - retained + KL, against the cheapest baseline that forgets as far."""

    def cost(row: Row) -> float:
        return 1 - row.mean(summary.retain_accuracy) + row.mean(summary.story_kl)

    sentence = _of(method, "no worse than any baseline at equal forgetting (1 - retained + KL)")
    able = [
        rows[name]
        for name in BASELINES
        if _stands(rows, name)
        and rows[name].mean(summary.forget_accuracy) <= FORGOTTEN + 1e-9  # a mean of thirds
    ]
    if not able:
        return Claim(sentence, "no baseline forgets as far", None)
    best = min(able, key=cost)
    ours, theirs = cost(rows[method]), cost(best)
    return Claim(sentence, f"{ours:.4f}; {best.method} {theirs:.4f}", ours <= theirs)


def _at_most(sentence: str, row: Row, number: summary.Number, limit: float) -> Claim:
    return _judged(sentence, row, number, max, lambda worst: worst <= limit)


def _at_least(sentence: str, row: Row, number: summary.Number, limit: float) -> Claim:
    return _judged(sentence, row, number, min, lambda worst: worst >= limit)


def _judged(
    sentence: str,
    row: Row,
    number: summary.Number,
    worst_of: Callable[..., float],
    holds: Callable[[float], bool],
) -> Claim:
    values = row.values(number)
    if not values:
        return Claim(sentence, "not measured", None)
    return Claim(sentence, _shown(values), holds(worst_of(values)))


def _shown(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values) or "not measured"


def _pairs(row: Row, gold: Row, number: summary.Number) -> list[tuple[float, float]]:
    """Fold by fold."""
    theirs = {cell.scope: cell.scores for cell in gold.cells}
    found = []
    for cell in row.cells:
        other = theirs.get(cell.scope)
        if cell.scores is None or other is None:
            continue
        pair = number(cell.scores), number(other)
        if pair[0] is not None and pair[1] is not None:
            found.append((pair[0], pair[1]))
    return found


def _against(pairs: list[tuple[float, float]]) -> str:
    if not pairs:
        return "not measured"
    return ", ".join(
        f"{ours:.2f} against {theirs:.2f}" for ours, theirs in pairs if not math.isnan(ours)
    )
