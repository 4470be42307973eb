"""Which nodes of several prompts' circuits are the same.

Positions are counted from the end of a prompt. Two eigenmodes are the same where they are of one
layer, their eigenvalues have one sign, and their eigenvectors have a cosine of at least a limit to
that of the strongest of them (eigenvectors have no sign); positions count only if that is asked
for. Elements of a shared basis are the same where layer and index are. Heads' edges are the same
where head and both positions are, tokens where the position is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tl_bilinear.circuits.circuit import Circuit, Node
from tl_bilinear.decompositions import Mode


@dataclass(frozen=True, eq=False)
class RecurringMode:
    """One mode (or element of a shared basis) with its occurrences."""

    id: str
    layer: int
    offset: int | None
    """Position from the end, -1 the last; None where positions do not count."""
    index: int
    """Of the strongest occurrence."""
    mode: Mode | None
    """Of the strongest occurrence; None in a shared basis."""
    shares: tuple[float, ...]
    """Per prompt, its occurrences summed: zero where it does not occur."""
    occurrences: tuple[tuple[int, str], ...]
    """(prompt, id in that prompt's circuit)."""

    @property
    def strength(self) -> float:
        """The mean of |share| over the prompts."""
        return sum(abs(share) for share in self.shares) / len(self.shares)

    @property
    def prompts(self) -> int:
        """In how many prompts it occurs."""
        return len({prompt for prompt, _ in self.occurrences})


def find_recurring(
    circuits: Sequence[Circuit], cosine: float = 0.9, *, by_position: bool = False
) -> tuple[RecurringMode, ...]:
    """The modes of circuits, those that are the same as one, the strongest first.

    Greedy: modes in the order of their |share|; each joins the first kept one that it is the same
    as, or is kept itself. O(modes * kept * d_model).

    Raises:
        ValueError: a cosine outside of (0, 1].
    """
    if not 0 < cosine <= 1:
        raise ValueError(f"`cosine` must be in (0, 1], got {cosine}")
    every = [
        (prompt, node)
        for prompt, circuit in enumerate(circuits)
        for node in circuit.nodes
        if node.kind == "mode"
    ]
    kept: list[RecurringMode] = []
    by_place: dict[tuple, list[int]] = {}
    for prompt, node in sorted(every, key=lambda pair: -abs(pair[1].share)):
        mode = circuits[prompt].modes.get(node.id)
        offset = from_end(circuits[prompt], node.position) if by_position else None
        key = (node.layer, offset, None if mode else node.index)
        mates = by_place.setdefault(key, [])
        same = next((i for i in mates if _same(kept[i].mode, mode, cosine)), None)
        if same is None:
            same = len(kept)
            mates.append(same)
            kept.append(_first(node, offset, mode, len(circuits), same))
        kept[same] = _with(kept[same], prompt, node)
    return tuple(sorted(kept, key=lambda mode: -mode.strength))


def from_end(circuit: Circuit, position: int | None) -> int | None:
    """A position counted from the end: -1 is the last."""
    return None if position is None else position - len(circuit.tokens)


def _same(first: Mode | None, second: Mode | None, cosine: float) -> bool:
    if first is None or second is None:
        return first is second
    if (first.eigenvalue < 0) != (second.eigenvalue < 0):
        return False
    return bool((first.eigenvector @ second.eigenvector).abs() >= cosine)


def _first(
    node: Node, offset: int | None, mode: Mode | None, prompts: int, number: int
) -> RecurringMode:
    assert node.layer is not None and node.index is not None
    return RecurringMode(
        id=f"L{node.layer}.r{number}",
        layer=node.layer,
        offset=offset,
        index=node.index,
        mode=mode,
        shares=(0.0,) * prompts,
        occurrences=(),
    )


def _with(found: RecurringMode, prompt: int, node: Node) -> RecurringMode:
    shares = list(found.shares)
    shares[prompt] += node.share
    occurrences = (*found.occurrences, (prompt, node.id))
    return replace(found, shares=tuple(shares), occurrences=occurrences)
