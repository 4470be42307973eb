"""Where a result comes from: model fingerprint, versions, and what was held fixed."""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

import torch
from jaxtyping import Int
from torch import Tensor

from tl_bilinear.hosts.attention import raw_attention_weights
from tl_bilinear.hosts.host import AbstractHost

SAMPLE = 4096


@dataclass(frozen=True)
class Provenance:
    """Attached to every result."""

    model: str
    fingerprint: str
    """Of all weights, by a sample of each, in their dtype; equal on every host of a checkpoint."""
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
    """Twelve hex digits of all weights' shapes and dtypes and of up to 4,096 entries of each.

    The entries are drawn once for each size: a change of one in a thousand of a weight's entries
    is seen with a probability of 98 %, that of a single one of many mostly not.
    """
    digest = hashlib.sha256()
    for weight in _weights(host):
        _update(digest, weight.detach())
    return digest.hexdigest()[:12]


def _weights(host: AbstractHost) -> Iterator[Tensor]:
    yield from (host.W_E, host.W_U, host.b_U)
    norms = [host.final_norm()]
    for layer in range(host.n_layers):
        mlp = host.mlp_weights(layer)
        yield from (mlp.tensor.left, mlp.tensor.right, mlp.tensor.out)
        yield from (mlp.left_bias, mlp.right_bias, mlp.out_bias)
        yield from raw_attention_weights(host, layer)
        norms += [host.mlp_norm(layer), host.attention_norm(layer)]
        norms += [host.mlp_post_norm(layer), host.attention_post_norm(layer)]
    for norm in norms:
        yield from (part for part in (norm.gain, norm.bias) if part is not None)


def _update(digest, weight: Tensor) -> None:
    # Entries are picked where they lie: flattening a bridge's transposed view would copy it whole.
    places = _places(weight.numel()).to(weight.device)
    sample = weight[torch.unravel_index(places, weight.shape)].cpu().contiguous()
    digest.update(f"{tuple(weight.shape)} {weight.dtype}".encode())
    digest.update(sample.view(torch.uint8).numpy().tobytes())


@functools.cache
def _places(n_entries: int) -> Int[Tensor, " entry"]:
    if n_entries <= SAMPLE:
        return torch.arange(n_entries)
    generator = torch.Generator().manual_seed(n_entries)
    return torch.randint(n_entries, (SAMPLE,), generator=generator)
