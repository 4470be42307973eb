"""Where a result comes from: model fingerprint, versions, and what was held fixed."""

import functools
import hashlib
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import Tensor

from tl_bilinear.hosts.host import AbstractHost

SAMPLE = 4096


@dataclass(frozen=True)
class Provenance:
    """Attached to every result."""

    model: str
    fingerprint: str
    """Of embedding, unembedding and MLP weights; equal on every host of one checkpoint."""
    host: str
    versions: str
    frozen: tuple[str, ...]
    """What was taken from the forward pass instead of being explained."""
    gauge: str

    def __str__(self) -> str:
        frozen = ", ".join(self.frozen) or "nothing"
        return (
            f"{self.model} ({self.fingerprint}) on {self.host}; frozen: {frozen}; gauge: "
            f"{self.gauge}; {self.versions}"
        )


def provenance(host: AbstractHost, frozen: tuple[str, ...], gauge: str) -> Provenance:
    """The record for a result computed on `host` now."""
    return Provenance(
        model=str(host.model.cfg.model_name).rstrip("/").rsplit("/", 1)[-1],
        fingerprint=fingerprint(host),
        host=host.kind,
        versions=_versions(),
        frozen=frozen,
        gauge=gauge,
    )


@functools.cache
def _versions() -> str:
    packages = ("tl_bilinear", "transformer_lens", "torch")
    return ", ".join(f"{name} {version(name)}" for name in packages)


def fingerprint(host: AbstractHost) -> str:
    """Twelve hex digits of the weights' shapes and of up to 4,096 entries of each."""
    digest = hashlib.sha256()
    for weight in (host.W_E, host.W_U):
        _update(digest, weight.detach())
    for layer in range(host.n_layers):
        weights = host.mlp_weights(layer)
        for weight in (weights.tensor.left, weights.tensor.right, weights.tensor.out):
            _update(digest, weight)
    return digest.hexdigest()[:12]


def _update(digest, weight: Tensor) -> None:
    # Entries are picked where they lie: flattening a bridge's transposed view would copy it whole.
    step = max(1, weight.numel() // SAMPLE)
    places = torch.arange(0, weight.numel(), step, device=weight.device)
    sample = weight[torch.unravel_index(places, weight.shape)]
    digest.update(str(tuple(weight.shape)).encode())
    digest.update(sample.to("cpu", torch.float32).contiguous().numpy().tobytes())
