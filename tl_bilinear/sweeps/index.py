"""index.parquet: a row per (layer, direction), made of the shards' narrow tensors.

Opened with pandas its `attrs` are the manifest: model, computation, where the directions were
read and which norms were folded into them.
"""

import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_bilinear.sweeps.chunks import Chunk
from tl_bilinear.sweeps.error import SweepError
from tl_bilinear.sweeps.manifest import Manifest, sync_folder
from tl_bilinear.sweeps.shards import read_shard, shard_path, shard_shapes

INDEX = "index.parquet"
WIDEST = 64
"""A [direction, k] tensor gets a column for each k up to this many; what is wider stays out."""


def write_index(folder: Path, manifest: Manifest, labels: Sequence[str]) -> Path:
    """Stream all shards into one parquet file, a shard at a time; written whole or not at all.

    Raises:
        SweepError: shards whose tensors differ in name, shape or dtype.
    """
    import pyarrow
    import pyarrow.parquet

    chunks = manifest.chunks()
    shapes = shard_shapes(folder, chunks[0])
    names = {name for name, (_, shape) in shapes.items() if _is_narrow(shape)}
    # pandas reads the latter into DataFrame.attrs.
    notes = {"sweep": manifest.id, "PANDAS_ATTRS": json.dumps(manifest.content)}
    path = folder / INDEX
    unfinished = path.with_name(f".{INDEX}.{uuid.uuid4().hex[:12]}.unfinished")
    writer = None
    try:
        for chunk in chunks:
            if shard_shapes(folder, chunk) != shapes:
                raise SweepError(
                    f"{shard_path(folder, chunk)} holds {shard_shapes(folder, chunk)} and the "
                    f"first shard {shapes}: a computation must give the same tensors for every "
                    "chunk"
                )
            table = pyarrow.table(_columns(chunk, read_shard(folder, chunk, names), labels))
            if writer is None:
                writer = pyarrow.parquet.ParquetWriter(
                    unfinished, table.schema.with_metadata(notes)
                )
            writer.write_table(table.replace_schema_metadata(notes))
        assert writer is not None
        writer.close()
        os.replace(unfinished, path)
        sync_folder(folder)
    finally:
        if writer is not None:
            writer.close()
        unfinished.unlink(missing_ok=True)
    return path


def index_is_whole(folder: Path, manifest: Manifest) -> bool:
    """Whether there is an index of this sweep with all its rows."""
    import pyarrow
    import pyarrow.parquet

    try:
        found = pyarrow.parquet.read_metadata(folder / INDEX)
    except (OSError, pyarrow.ArrowException):
        return False
    written = (found.metadata or {}).get(b"sweep", b"").decode()
    return written == manifest.id and found.num_rows == len(manifest.layers) * manifest.n_directions


def _columns(chunk: Chunk, tensors: dict[str, Tensor], labels: Sequence[str]) -> dict[str, Any]:
    n = chunk.stop - chunk.start
    columns: dict[str, Any] = {
        "layer": torch.full((n,), chunk.layer, dtype=torch.int32).numpy(),
        "direction": torch.arange(chunk.start, chunk.stop).numpy(),
        "label": list(labels[chunk.start : chunk.stop]),
    }
    for name, value in tensors.items():
        if value.dtype in (torch.bfloat16, torch.float16):
            value = value.float()
        if value.ndim == 1:
            columns[name] = value.numpy()
        else:
            columns |= {f"{name}.{k}": value[:, k].numpy() for k in range(value.shape[1])}
    return columns


def _is_narrow(shape: tuple[int, ...]) -> bool:
    return not shape or (len(shape) == 1 and shape[0] <= WIDEST)
