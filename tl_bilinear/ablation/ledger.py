"""The separate record that undoes an edit of weights: a file of its own, never in a model's folder.

It holds the edited layers' MLP weights as they were. Whoever has it can undo any edit; the model's
own folder never says more than `WeightEdit.kind` (masking or removal) promises.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from tl_bilinear.ablation.sealed_file import read_sealed, write_sealed
from tl_bilinear.checkpoints.error import CheckpointError
from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.provenance import fingerprint
from tl_bilinear.hosts.resizing import narrowed, set_mlps_
from tl_bilinear.quadratic_map import QuadraticMap
from tl_bilinear.tensor import BilinearTensor

FORMAT = "tl_bilinear undo ledger"
PARTS = ("left", "right", "out", "left_bias", "right_bias", "out_bias")


@dataclass(frozen=True, eq=False)
class Ledger:
    """What a model's MLPs were before an edit."""

    how: str
    """The edit, in words."""
    before: str
    """Fingerprint of the model before the edit."""
    after: str
    """Fingerprint of the edited model: the one that `undo_` takes."""
    d_mlp: int
    """Width of every layer before the edit."""
    weights: Mapping[int, QuadraticMap] = field(repr=False)
    """Of the edited layers, as `host.mlp_weights` gave them, bit for bit."""

    def save(self, path: str | Path) -> Path:
        """Write the ledger to one file, whole or not at all.

        Raises:
            CheckpointError: a place inside a model's folder or of another file, or a file that
                cannot be written.
        """
        path = Path(path).resolve()
        home = next((at for at in path.parents if (at / "config.json").is_file()), None)
        if home is not None:
            raise CheckpointError(
                f"{path} lies in the model folder {home}: with its ledger beside it an edit can be "
                "undone by whoever gets the folder. Give a place outside of it"
            )
        notes: dict[str, Any] = {"layers": sorted(self.weights)}
        notes |= {name: getattr(self, name) for name in ("how", "before", "after", "d_mlp")}
        tensors = {
            f"{layer}.{part}": value
            for layer, weights in self.weights.items()
            for part, value in zip(PARTS, _parts(weights), strict=True)
        }
        write_sealed(path, FORMAT, notes, tensors)
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Ledger":
        """Read a file of `save`.

        Raises:
            CheckpointError: a file that cannot be read, was damaged, or is no ledger.
        """
        return read_sealed(Path(path), FORMAT, "Ledger.save", _made)


def undo_(model: Any, ledger: Ledger) -> None:
    """Give an edited model the MLPs that it had, bit for bit.

    Works on the model that was edited and on one that was saved and loaded again (as float32 stays
    float32: another dtype is another model).

    Raises:
        ValueError: a model that is not the edited one, by its fingerprint; it stays as it is.
    """
    if not isinstance(ledger, Ledger):
        raise ValueError(
            f"`ledger` must be a Ledger (edit.ledger, or Ledger.load(path)), got "
            f"{type(ledger).__name__}"
        )
    host = get_host(model)
    now = fingerprint(host)
    if now != ledger.after:
        raise ValueError(
            f"this ledger undoes an edit ({ledger.how}) of the model that has fingerprint "
            f"{ledger.after} since, and this model has {now}: "
            + (
                "it is undone already"
                if now == ledger.before
                else "give the edited model; later edits of it are undone first"
            )
        )
    restore_(host, ledger.weights, ledger.d_mlp)


def restore_(host: AbstractHost, weights: Mapping[int, QuadraticMap], d_mlp: int) -> None:
    """Old weights back, and every other layer cut to its old width."""
    others = (layer for layer in range(host.n_layers) if layer not in weights)
    cut = {layer: narrowed(host.mlp_weights(layer), d_mlp) for layer in others}
    set_mlps_(host, {**cut, **weights})


def _parts(weights: QuadraticMap) -> tuple[Tensor, ...]:
    tensor = weights.tensor
    biases = (weights.left_bias, weights.right_bias, weights.out_bias)
    return (tensor.left, tensor.right, tensor.out, *biases)


def _map(parts: list[Tensor]) -> QuadraticMap:
    return QuadraticMap(BilinearTensor(*parts[:3], shared_input=True), *parts[3:])


def _made(notes: dict[str, Any], tensors: dict[str, Tensor]) -> Ledger:
    weights = {
        int(layer): _map([tensors[f"{layer}.{part}"] for part in PARTS])
        for layer in notes["layers"]
    }
    words = {name: str(notes[name]) for name in ("how", "before", "after")}
    return Ledger(**words, d_mlp=int(notes["d_mlp"]), weights=weights)
