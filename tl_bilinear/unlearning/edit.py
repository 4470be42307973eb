"""A fitted edit: what is added to each layer's output, in factors, and what the fit saw."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.decompositions import Mode
from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.provenance import Provenance, fingerprint
from tl_bilinear.unlearning.descent import FitStep
from tl_bilinear.unlearning.layer_basis import LayerBasis
from tl_bilinear.unlearning.site_gradients import adding


@dataclass(frozen=True, eq=False)
class LayerChange:
    """`dy = sum_k phi_k writers[k]`, phi_k = readers[k] . h of the MLP's hidden products h, or
    (readers[k] . x)^2 of its normalised input x."""

    layer: int
    readers: Float[Tensor, "term width"]
    writers: Float[Tensor, "term d_model"]
    squares: bool = False

    @property
    def rank(self) -> int:
        return len(self.readers)

    @property
    def weight(self) -> Float[Tensor, "d_mlp d_model"]:
        """What is added to W_out, in TransformerLens' orientation.

        Raises:
            ValueError: for squares, which are no change of W_out.
        """
        if self.squares:
            raise ValueError(
                f"layer {self.layer}'s change reads squares of the MLP's input: it takes neurons "
                "of its own, not a change of W_out. Write it with tl_bilinear.ablate_(model, "
                "edit.modes)"
            )
        return self.readers.mT @ self.writers

    def basis(self) -> LayerBasis:
        return LayerBasis(
            self.layer,
            self.readers.shape[1],
            self.writers.shape[1],
            self.readers,
            self.writers,
            self.squares,
            paired=True,
        )


@dataclass(frozen=True, eq=False)
class Edit:
    """What `fit_edit` found. Nothing is edited until it is applied."""

    changes: tuple[LayerChange, ...]
    basis: str
    met: bool
    """Whether every demand was met, to a quarter of a logit."""
    message: str
    """Why the fit ended; what is missing where the demands were not met."""
    history: tuple[FitStep, ...]
    """Every step that was tried."""
    last: FitStep
    """How the edit stands: the step that made it."""
    seconds: float
    provenance: Provenance
    """Of the model that it was fitted to; it goes onto no other."""
    modes: tuple[Mode, ...] = ()
    """Of basis "eigenmodes": what `ablate_` takes out of the weights to write the edit."""

    @property
    def ranks(self) -> dict[int, int]:
        """Terms per layer."""
        return {change.layer: change.rank for change in self.changes}

    @property
    def n_modes(self) -> int:
        """Terms of all layers."""
        return sum(self.ranks.values())

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        """The edited model inside a `with` block, by hooks; its weights are not touched.

        Raises:
            ValueError: a model that the edit was not fitted to.
        """
        host = self._host(model)
        changes = [(each.basis(), torch.ones(each.rank)) for each in self.changes]
        with adding(host, changes):
            yield model

    def apply_(self, model: Any) -> None:
        """Write the edit into W_out. Undone bit for bit from a copy of the weights only.

        Raises:
            ValueError: a model that the edit was not fitted to, or terms that read squares.
        """
        host = self._host(model)
        weights = [(change.layer, change.weight) for change in self.changes]
        with torch.no_grad():
            for layer, weight in weights:
                out = host.mlp_weights(layer).tensor.out
                out.add_(weight.mT.to(out))

    def undo_(self, model: Any) -> None:
        """Take out again what `apply_` put in, to rounding.

        The model may have been edited further since. It is not known whether it ever had this
        edit: only the model before `apply_` is refused.

        Raises:
            ValueError: terms that read squares, or the model as it was before the edit.
        """
        host = get_host(model)
        if fingerprint(host) == self.provenance.fingerprint:
            raise ValueError("this model has no edit to be undone: it is the one before apply_")
        weights = [(change.layer, change.weight) for change in self.changes]
        with torch.no_grad():
            for layer, weight in weights:
                out = host.mlp_weights(layer).tensor.out
                out.sub_(weight.mT.to(out))

    def scaled(self, factor: float) -> "Edit":
        """The edit with every term times `factor`: 0 nothing, 1 itself; for dose curves."""
        changes = tuple(replace(each, writers=factor * each.writers) for each in self.changes)
        modes = tuple(replace(each, eigenvalue=factor * each.eigenvalue) for each in self.modes)
        message = f"{self.message}, times {factor:g}"
        return replace(self, changes=changes, modes=modes, message=message)

    def _host(self, model: Any) -> AbstractHost:
        host = get_host(model)
        found = fingerprint(host)
        if found != self.provenance.fingerprint:
            raise ValueError(
                f"this edit was fitted to {self.provenance.model} "
                f"({self.provenance.fingerprint}), and this model is {found}: another one, or one "
                "that has been edited since. Fit the edit to it"
            )
        return host

    def __repr__(self) -> str:
        ranks = ", ".join(f"L{layer}: {rank}" for layer, rank in self.ranks.items())
        return f'Edit("{self.basis}", ranks {ranks}; {self.message})'
