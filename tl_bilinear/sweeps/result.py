"""`Sweep`: a finished sweep's folder, opened lazily."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tl_bilinear.sweeps.chunks import Chunk
from tl_bilinear.sweeps.error import SweepError
from tl_bilinear.sweeps.index import INDEX, index_is_whole
from tl_bilinear.sweeps.manifest import Manifest, read_labels, read_manifest
from tl_bilinear.sweeps.shards import read_shard, shard_path, shard_shapes

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Sweep:
    """Scalars per (layer, direction) as a DataFrame; vectors stay in the shards until asked for.

    The folder holds manifest.json, directions.json (labels), one safetensors file per chunk
    and, once all are there, index.parquet.
    """

    folder: Path
    manifest: Manifest
    computed: tuple[Chunk, ...] = ()
    """What this process computed in the call that returned this; the rest was there."""
    damaged: tuple[str, ...] = ()
    """Shards that were found unusable in that call, with the reason, and computed again."""

    @classmethod
    def load(cls, folder: str | Path) -> "Sweep":
        """A sweep from its folder, finished or not; no model is needed.

        Raises:
            SweepError: no sweep, or a damaged manifest.
        """
        folder = Path(folder).expanduser().resolve()
        manifest = read_manifest(folder)
        if manifest is None:
            raise SweepError(f"{folder} holds no sweep (it has no manifest.json)")
        return cls(folder, manifest)

    @property
    def layers(self) -> tuple[int, ...]:
        return self.manifest.layers

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:
        """One per direction."""
        return read_labels(self.folder)

    @property
    def index(self) -> Path:
        """The parquet file that opens as a DataFrame."""
        return self.folder / INDEX

    def missing(self) -> tuple[Chunk, ...]:
        """Chunks that have no file yet."""
        return tuple(
            chunk for chunk in self.manifest.chunks() if not shard_path(self.folder, chunk).exists()
        )

    def dataframe(self, name: str | None = None) -> "pandas.DataFrame":
        """The index: a row per layer and direction, with `layer`, `direction` and `label`.

        Args:
            name: a [direction, k] tensor such as "eigenvalues": then a row per layer,
                direction and k, read from the shards, whatever its width.

        Raises:
            SweepError: the sweep is unfinished.
            ValueError: an unknown name, or a tensor of another shape.
        """
        import pandas

        self._require_finished()
        if name is None:
            return pandas.read_parquet(self.index)
        shape = self._shape(name)
        if len(shape) != 1:
            raise ValueError(
                f"{name!r} has shape {list(shape)} per direction, and rows by k need [k]: see "
                "dataframe() and tensors(layer)"
            )
        k, n = shape[0], self.manifest.n_directions
        order = torch.arange(n)
        frames = [
            pandas.DataFrame(
                {
                    "layer": layer,
                    "direction": order.repeat_interleave(k).numpy(),
                    "label": [label for label in self.labels for _ in range(k)],
                    "k": torch.arange(k).repeat(n).numpy(),
                    name: _plain(self.tensors(layer)[name]).flatten().numpy(),
                }
            )
            for layer in self.layers
        ]
        return pandas.concat(frames, ignore_index=True)

    def top(self, k: int, column: str) -> "pandas.DataFrame":
        """The k rows of the index where a column is largest in magnitude."""
        frame = self.dataframe()
        if column not in frame.columns:
            raise ValueError(f"the index has no column {column!r}: it has {list(frame.columns)}")
        order = frame[column].abs().sort_values(ascending=False, kind="stable").index
        return frame.loc[order[:k]]

    def tensors(self, layer: int) -> "LayerTensors":
        """One layer's tensors by name, all directions in order; each is read when asked for."""
        if layer not in self.layers:
            raise ValueError(f"layer {layer} was not swept: layers are {self.layers}")
        return LayerTensors(self, layer)

    def at(self, layer: int, direction: int) -> dict[str, Tensor]:
        """Every tensor of one direction; one shard is read.

        Raises:
            ValueError: a layer or direction that was not swept, or is not finished.
        """
        chunks = [c for c in self.manifest.chunks() if c.layer == layer]
        found = [c for c in chunks if c.start <= direction < c.stop]
        if not found:
            raise ValueError(
                f"layer {layer}, direction {direction} was not swept: layers are {self.layers}, "
                f"directions 0-{self.manifest.n_directions - 1}"
            )
        self._require_shards(found)
        tensors = read_shard(self.folder, found[0])
        return {name: value[direction - found[0].start] for name, value in tensors.items()}

    def summary(self) -> list[tuple[str, str]]:
        """(quantity, value) for a short table."""
        content, total = self.manifest.content, len(self.manifest.chunks())
        named = content["computation"]
        settings = ", ".join(f"{key}={value}" for key, value in named["arguments"].items())
        folded = ", ".join(content["directions"]["folded"])
        return [
            ("model", f"{content['model']} ({content['fingerprint']})"),
            ("computation", f"{named['name']} ({settings})"),
            ("layers", ", ".join(map(str, self.layers))),
            ("directions", f"{self.manifest.n_directions:,}: {content['directions']['source']}"),
            ("read in", content["directions"]["space"] + (f", {folded} folded" if folded else "")),
            ("chunks", f"{total:,}, {len(self.computed):,} computed now by this process"),
        ]

    def __str__(self) -> str:
        content = self.manifest.content
        named = content["computation"]
        arguments = ", ".join(f"{key}={value}" for key, value in named["arguments"].items())
        folded = ", ".join(content["directions"]["folded"]) or "nothing"
        return (
            f"{named['name']} ({arguments}) of {content['model']} ({content['fingerprint']}) on "
            f"{content['host']}, layers {list(self.layers)}, {self.manifest.n_directions} "
            f"directions: {content['directions']['source']} (read as "
            f"{content['directions']['space']}, folded in: {folded}); {content['dtype']}, "
            f"{content['device']}, {content['versions']}"
        )

    def _shape(self, name: str) -> tuple[int, ...]:
        shapes = shard_shapes(self.folder, self.manifest.chunks()[0])
        if name not in shapes:
            raise ValueError(f"this sweep has no tensor {name!r}: it has {list(shapes)}")
        return shapes[name][1]

    def _require_finished(self) -> None:
        self._require_shards(self.manifest.chunks())
        if not index_is_whole(self.folder, self.manifest):
            raise SweepError(f"{self.folder} has no whole index: run the sweep's command again")

    def _require_shards(self, chunks: tuple[Chunk, ...] | list[Chunk]) -> None:
        missing = [chunk for chunk in chunks if not shard_path(self.folder, chunk).exists()]
        if missing:
            raise SweepError(
                f"{self.folder} is unfinished: {len(missing)} of {len(chunks)} chunks are missing "
                f"(first: {missing[0]}). Run the sweep's command again, which resumes"
            )


class LayerTensors(Mapping[str, Tensor]):
    """A layer's tensors by name, each put together from its shards when it is asked for."""

    def __init__(self, sweep: Sweep, layer: int):
        self._sweep = sweep
        self._chunks = [chunk for chunk in sweep.manifest.chunks() if chunk.layer == layer]
        sweep._require_shards(self._chunks)
        self._names = list(shard_shapes(sweep.folder, self._chunks[0]))

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(f"{name!r}: this sweep has {self._names}")
        parts = [read_shard(self._sweep.folder, chunk, {name})[name] for chunk in self._chunks]
        return torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _plain(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
