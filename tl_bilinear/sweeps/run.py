"""`run_sweep`: compute what is missing of a sweep, chunk by chunk, and write its index."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.gates import gated_error
from tl_bilinear.hosts.layers import checked_layers
from tl_bilinear.sweeps.chunks import Chunk
from tl_bilinear.sweeps.computation import AbstractComputation, Function, FunctionComputation
from tl_bilinear.sweeps.computations import make_computation
from tl_bilinear.sweeps.directions import Directions
from tl_bilinear.sweeps.error import SweepError
from tl_bilinear.sweeps.index import index_is_whole, write_index
from tl_bilinear.sweeps.manifest import (
    MANIFEST,
    Manifest,
    create_manifest,
    is_own_beginning,
    make_manifest,
    read_manifest,
    write_labels,
)
from tl_bilinear.sweeps.plan import Plan, make_plan
from tl_bilinear.sweeps.ranks import (
    Ranks,
    exclusive,
    failure_path,
    process_ranks,
    wait_for,
)
from tl_bilinear.sweeps.result import Sweep
from tl_bilinear.sweeps.shards import shard_fault, shard_path, write_shard
from tl_bilinear.tensor import BilinearTensor


def run_sweep(
    model: Any,
    compute: str | AbstractComputation | Function,
    directions: Directions | Tensor,
    layers: Sequence[int] | None,
    folder: str | Path,
    *,
    memory: int | str | None = None,
    chunk: int | None = None,
    threads: int = 1,
    dtype: torch.dtype | None = None,
    bytes_per_direction: int | None = None,
    progress: bool = True,
    patience: float = 3600.0,
) -> Sweep:
    """One computation over (layer, direction) pairs, into a folder; resumed where it stopped.

    Every chunk is one file that appears whole: a kill loses the chunk at work and nothing
    else, and a finished chunk is never computed again. Chunks do not depend on memory or
    processes once the folder exists, so a sweep that was interrupted, or split by torchrun,
    equals one that was not, bit for bit: on the same kind of processor, with the same versions
    and number of threads (all in the manifest; a difference is refused).

    Under torchrun (RANK and WORLD_SIZE) each process takes its share of the chunks; all
    return when the index is written.

    Args:
        model: a HookedTransformer, a TransformerBridge or a host.
        compute: a name of `computations()`, a computation, or a function (tensor, u [chunk,
            d_model]) -> tensors with the directions on their leading axis. Tensor and u are in
            `dtype`, u at the layer's `mlp_out_site` with the norms behind it folded in.
        directions: `token_directions(model)` and its like, or a matrix [n, d_model] of
            directions at the MLPs' outputs.
        layers: all where it is None.
        folder: new or empty, or of the same sweep.
        memory: budget of one process beside the model, bytes or "4GiB"; a quarter of what is
            free (shared by the ranks of a machine) where it is None.
        chunk: directions per file; by the budget, and at most 256 or about a minute's work,
            where it is None.
        threads: of torch, in each process. One by default: eigensolvers gain little from
            more, round differently with them, and torchrun's processes have one.
        dtype: the model's own, or float32 for 16-bit models, where it is None.
        bytes_per_direction: what a function takes; a full eigendecomposition's where it is None.
        progress: the plan and a bar on stderr (rank 0).
        patience: seconds that a rank waits for another without anything new.

    Raises:
        SweepError: a folder of another sweep or of anything else, one at which another
            process is at work, a rank that failed.
        NotBilinearError: a layer with a gate activation.
        ValueError: bad layers, directions, budget or settings; nothing is written.
        OSError: the folder cannot be written.
    """
    host, began = get_host(model), time.time()
    ranks = process_ranks()
    work = _Work(
        host,
        _as_computation(compute, bytes_per_direction),
        _as_directions(directions),
        checked_layers(host, layers),
        dtype or (torch.float32 if host.dtype.itemsize < 4 else host.dtype),
        Path(folder).expanduser().resolve(),
    )
    work.require_sound()
    with _failure_told(work.folder, ranks):
        if ranks.rank and not (work.folder / MANIFEST).exists():
            wait_for(
                lambda: int(not (work.folder / MANIFEST).exists()),
                "rank 0's manifest",
                work.folder,
                patience,
                began,
            )
        found = _read_folder(work.folder)
        plan = work.plan(memory, found.chunk if found and chunk is None else chunk, threads, ranks)
        manifest = work.manifest(plan)
        if found is None:
            try:
                create_manifest(work.folder, manifest)
            except FileExistsError:  # another process was quicker
                found = read_manifest(work.folder)
        if found is not None:
            found.require_same(manifest, work.folder)
        with exclusive(work.folder) if ranks.rank == 0 else nullcontext():
            write_labels(work.folder, work.directions.labels)
            sweep = work.compute_share(manifest, plan, ranks, progress and ranks.rank == 0)
            _merge(sweep, work.directions.labels, ranks, patience, began)
    return sweep


@dataclass(frozen=True, eq=False)
class _Work:
    """What was asked for, checked; the folder's manifest is compared with it."""

    host: AbstractHost
    computation: AbstractComputation
    directions: Directions
    layers: tuple[int, ...]
    dtype: torch.dtype
    folder: Path

    def require_sound(self) -> None:
        """Raise ValueError before anything is written."""
        for layer in self.layers:
            self.computation.require_fit(self.host.mlp_weights(layer).tensor)
            if self.host.is_gated(layer):
                raise gated_error(layer, self.host.gate_activation(layer))
        self.directions.require_usable(self.host.d_model)
        self.directions.require_nonzero_when_folded(self.host, self.layers, self.dtype)

    def plan(self, memory: int | str | None, chunk: int | None, threads: int, ranks: Ranks) -> Plan:
        """For the layer of largest rank."""
        tensors = [self.host.mlp_weights(layer).tensor for layer in self.layers]
        return make_plan(
            self.computation,
            max(tensors, key=lambda tensor: tensor.rank),
            self.layers,
            len(self.directions),
            memory=memory,
            chunk=chunk,
            threads=threads,
            ranks=ranks,
        )

    def manifest(self, plan: Plan) -> Manifest:
        return make_manifest(
            self.host,
            self.computation,
            self.directions,
            self.layers,
            self.dtype,
            chunk=plan.chunk,
            threads=plan.threads,
        )

    def compute_share(self, manifest: Manifest, plan: Plan, ranks: Ranks, progress: bool) -> Sweep:
        """This rank's chunks that are not there yet; what is there is read and checked."""
        mine = manifest.chunks()[ranks.rank :: ranks.size]
        if progress:
            _say(str(plan))
        missing, damaged = [], []
        for chunk in mine:
            if not shard_path(self.folder, chunk).exists():
                missing.append(chunk)
            elif (fault := shard_fault(self.folder, chunk, manifest.id)) is not None:
                missing.append(chunk)
                damaged.append(f"{shard_path(self.folder, chunk).name}: {fault}")
                _say(f"{damaged[-1]}; it is computed again")
        if progress and len(missing) < len(mine):
            _say(f"{len(mine) - len(missing)} of {len(mine)} chunks are there already")
        # A bar appears after two seconds; it counts this rank's chunks.
        with (
            _threads(plan.threads),
            torch.no_grad(),
            tqdm(
                total=len(mine),
                initial=len(mine) - len(missing),
                desc="sweep",
                unit="chunk",
                delay=2,
                disable=not progress,
            ) as bar,
        ):
            tensor, at = None, None
            for chunk in missing:
                if tensor is None or at != chunk.layer:
                    tensor, at = None, chunk.layer  # not two layers at once
                    tensor = self.host.mlp_tensor(at).to(self.dtype)
                self._compute(tensor, chunk, manifest.id)
                bar.update()
        return Sweep(self.folder, manifest, tuple(missing), tuple(damaged))

    def _compute(self, tensor: BilinearTensor, chunk: Chunk, sweep: str) -> None:
        u = self.directions.at(self.host, chunk.layer, chunk.start, chunk.stop)
        found = self.computation(tensor, u.to(self.dtype))
        n = chunk.stop - chunk.start
        if not isinstance(found, dict) or not all(
            isinstance(value, Tensor) and value.ndim and len(value) == n for value in found.values()
        ):
            shapes = (
                {name: tuple(getattr(value, "shape", ())) for name, value in found.items()}
                if isinstance(found, dict)
                else type(found).__name__
            )
            raise ValueError(
                f"{self.computation.name} must return a dict of tensors whose first axis is the "
                f"{n} directions it is given, got {shapes}"
            )
        write_shard(self.folder, chunk, found, sweep)


def _merge(
    sweep: Sweep, labels: Sequence[str], ranks: Ranks, patience: float, began: float
) -> None:
    """Rank 0 writes the index once all shards are there; the others wait for it."""
    folder, manifest = sweep.folder, sweep.manifest
    if ranks.rank:
        wait_for(
            lambda: len(sweep.missing()) + (not index_is_whole(folder, manifest)),
            "the index",
            folder,
            patience,
            began,
        )
        return
    if ranks.size > 1:
        wait_for(lambda: len(sweep.missing()), "chunks of other ranks", folder, patience, began)
    if sweep.computed or not index_is_whole(folder, manifest):
        write_index(folder, manifest, labels)
    # What a kill left of files in the making, and what ranks said that failed before.
    for path in (*folder.glob(".*.unfinished"), *folder.glob("failed-rank-*.txt")):
        path.unlink(missing_ok=True)


@contextmanager
def _failure_told(folder: Path, ranks: Ranks) -> Iterator[None]:
    """A rank's failure, where rank 0 finds it while it waits."""
    path = failure_path(folder, ranks.rank)
    if path.exists():
        path.unlink()
    try:
        yield
    except Exception as error:
        if ranks.rank and folder.is_dir():
            path.write_text(f"{error}\n", encoding="utf-8")
        raise


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _read_folder(folder: Path) -> Manifest | None:
    """The manifest there is; None for a folder that is new or empty."""
    if folder.exists() and not folder.is_dir():
        raise SweepError(f"{folder} is a file: give a folder")
    found = read_manifest(folder)
    if found is None and folder.exists():
        others = [p.name for p in folder.iterdir() if not is_own_beginning(p)]
        if others:
            raise SweepError(
                f"{folder} is not empty and holds no sweep ({others[0]}, ...): give another folder"
            )
    return found


def _as_computation(
    compute: str | AbstractComputation | Function, bytes_per_direction: int | None
) -> AbstractComputation:
    if isinstance(compute, str):
        compute = make_computation(compute)
    if not isinstance(compute, AbstractComputation):
        if not callable(compute):
            raise ValueError(
                "`compute` is a name, a computation or a function of (tensor, directions), got "
                f"{type(compute).__name__}"
            )
        return FunctionComputation(compute, bytes_per_direction)
    if bytes_per_direction is not None:
        raise ValueError("`bytes_per_direction` is for functions: a computation knows its own")
    return compute


def _as_directions(directions: Directions | Tensor) -> Directions:
    if isinstance(directions, Directions):
        return directions
    if not isinstance(directions, Tensor) or directions.ndim != 2:
        raise ValueError(
            "`directions` must be a matrix [n, d_model] or made by token_directions, "
            f"file_directions, ..., got {getattr(directions, 'shape', type(directions).__name__)}"
        )
    labels = tuple(str(row) for row in range(len(directions)))
    return Directions(directions, labels, "mlp_out", "given")


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
