"""How a sweep is cut into chunks so that one process stays within a memory budget.

The estimate is an upper bound of what the sweep itself allocates: the model and the directions
are there before it. The cut is fixed when the sweep is made and kept in its folder: matrix
products round differently in other batches, so what is resumed is computed in the same ones.
"""

import re
from dataclasses import dataclass

import torch

from tl_bilinear.sweeps.chunks import chunks_of
from tl_bilinear.sweeps.computation import AbstractComputation
from tl_bilinear.sweeps.ranks import Ranks
from tl_bilinear.tensor import BilinearTensor

MIB, GIB = 2**20, 2**30
SHARE = 4
"""One part in four of the free memory, where no budget is given."""
OVERHEAD = 128 * MIB
"""The libraries' own buffers, shards in flight, and pyarrow while the index is written."""
MOST = 256
"""Directions in a chunk at most: what a kill loses stays small, and ranks have shares."""
CHUNK_FLOPS = 1e12
"""Likewise for wide models: about a minute of one core, eigenvectors taken as 25 d^3."""
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@dataclass(frozen=True)
class Plan:
    """The cut, and the memory that one process takes for it. `str` is what is shown first."""

    layers: tuple[int, ...]
    n_directions: int
    chunk: int
    per_direction: int
    fixed: int
    budget: int
    threads: int
    ranks: Ranks

    @property
    def needed(self) -> int:
        """Bytes at the worst moment, beside the model and the directions."""
        return self.fixed + self.chunk * self.per_direction

    @property
    def n_chunks(self) -> int:
        return len(chunks_of(self.layers, self.n_directions, self.chunk))

    def __str__(self) -> str:
        processes = (
            "one process" if self.ranks.size == 1 else f"each of {self.ranks.size} processes"
        )
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return (
            f"{len(self.layers)} layers x {self.n_directions:,} directions in {self.n_chunks:,} "
            f"chunks of {self.chunk}; about {shown(self.needed)} in {processes} with {threads} "
            f"({shown(self.fixed)} + {self.chunk} x {shown(self.per_direction)}), budget "
            f"{shown(self.budget)}, beside the model"
        )


def make_plan(
    computation: AbstractComputation,
    tensor: BilinearTensor,
    layers: tuple[int, ...],
    n_directions: int,
    *,
    memory: int | str | None,
    chunk: int | None,
    threads: int,
    ranks: Ranks,
) -> Plan:
    """The largest chunk that keeps within the budget, or the given one.

    Raises:
        ValueError: a budget that cannot be read, or is too small for the chunk or for one
            direction, with what is needed.
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"`chunk` must be at least 1, got {chunk}")
    if threads < 1:
        raise ValueError(f"`threads` must be at least 1, got {threads}")
    per_direction = max(1, computation.bytes_per_direction(tensor))
    factors = 3 * tensor.d_in * tensor.rank * 8
    fixed = OVERHEAD + factors + computation.bytes_fixed(tensor)
    budget = parse_memory(memory)
    if budget is None:
        free = free_bytes(tensor.out.device)
        budget = GIB if free is None else free // SHARE // ranks.local
    room = (budget - fixed) // per_direction
    if chunk is None:
        work = 25 * tensor.d_in**3 + 2 * tensor.rank * tensor.d_in**2
        chunk = max(1, min(room, MOST, int(CHUNK_FLOPS / work), n_directions))
    if room < chunk:
        raise ValueError(
            f"a budget of {shown(budget)} is too small: {shown(fixed + chunk * per_direction)} are "
            f"needed for chunks of {chunk} ({shown(fixed)} and {shown(per_direction)} per "
            f"direction): give memory={shown(fixed + chunk * per_direction)!r} or more"
        )
    return Plan(layers, n_directions, chunk, per_direction, fixed, budget, threads, ranks)


def parse_memory(memory: int | str | None) -> int | None:
    """Bytes from a number or a text such as "4GiB", "1.5G" or "800 MB" (powers of 1024).

    Raises:
        ValueError: anything else.
    """
    if memory is None:
        return None
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([kmgt]?)(?:i?b)?\s*", str(memory).lower())
    if found is None or float(found[1]) <= 0:
        raise ValueError(f"`memory` must be bytes or a text such as '4GiB', got {memory!r}")
    return int(float(found[1]) * UNITS[found[2]])


def free_bytes(device: torch.device) -> int | None:
    """Free memory where the model is; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    from tl_bilinear.checkpoints.memory import available_bytes  # brings transformers with it

    return available_bytes()


def shown(size: int) -> str:
    """Bytes, rounded up in a unit that `parse_memory` reads."""
    for unit, scale in (("GiB", GIB), ("MiB", MIB), ("KiB", 2**10)):
        if size >= scale:
            digits = 100 if size < 10 * scale else 1
            return f"{-(-size * digits // scale) / digits:g}{unit}"
    return f"{size}B"
