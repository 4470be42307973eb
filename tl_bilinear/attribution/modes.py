"""Contributions of eigenmodes of every MLP to a target, in a sum that closes.

With the final norm's denominator rho frozen, MLP layer l adds u . y_l / rho to the target,
where u is the target's direction with the final norm folded in (and, where a norm stands
between the MLP and the stream, that one too: hosts/writing.py). Since y_l is quadratic in
the normalised stream x (DESIGN 2.1),

    u . y_l / rho = sum_k lambda_k (v_k . x)^2 / rho + linear + constant

with (lambda_k, v_k) the eigenpairs of Q_l(u). The v_k come from the weights alone; only x
and rho come from the forward pass. This is a direct effect: what an earlier MLP does through
later layers is not in it.

A gated MLP of a model with frozen gates is quadratic at each token by itself, its gate's slope
taken from the forward pass as well (DESIGN 2.5). The same sums close, with eigenpairs of their
own for every prompt and site: they describe that token and no other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_bilinear.decompositions import Mode, eigendecompose
from tl_bilinear.decompositions.eigen import Gauge
from tl_bilinear.frozen_map import FrozenMap
from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.checked_map import checked_mlp_map
from tl_bilinear.hosts.layers import checked_layers
from tl_bilinear.hosts.prompts import Text
from tl_bilinear.hosts.provenance import Provenance, provenance
from tl_bilinear.hosts.reading import (
    Positions,
    Reading,
    directions,
    take_reading,
    target_values,
)
from tl_bilinear.hosts.target import Target
from tl_bilinear.hosts.writing import (
    frozen_maps,
    frozen_slopes,
    mlp_writing,
    require_additive,
    writing_hooks,
)
from tl_bilinear.tensor import BilinearTensor


@dataclass(frozen=True, eq=False)
class Attribution:
    """Shares of a target, in logits; a site is a (prefix, position) where it is read.

    Per layer, `contributions.sum(-1) + remainder + trace + linear + constant` is the MLP's
    share; over layers, with `rest`, it is the target. `*prompt` is no axis where modes come from
    the weights alone, and the batch where gates were frozen (`provenance.frozen` names them).
    """

    layers: tuple[int, ...]
    sites: tuple[str, ...]
    positions: Int[Tensor, "batch site"]
    eigenvalues: Float[Tensor, "layer *prompt site mode"]
    eigenvectors: Float[Tensor, "layer *prompt site mode d_model"]
    directions: Float[Tensor, "site d_model"]
    """u per site: the target's direction, final norm folded in, before 1/rho."""
    mlp_directions: Float[Tensor, "layer site d_model"]
    """u per layer, at `mlp_out_site`: the same, but with a post-norm folded in where there is
    one."""
    denominators: Float[Tensor, "layer batch site"]
    """rho, what contributions are divided by: the final norm's denominator, times that of a
    post-norm where there is one."""
    activations: Float[Tensor, "layer batch site mode"]
    """v_k . x, signed."""
    contributions: Float[Tensor, "layer batch site mode"]
    """lambda_k (v_k . x)^2 / rho."""
    remainder: Float[Tensor, "layer batch site"]
    """The quadratic part of all modes that were not kept."""
    trace: Float[Tensor, "layer batch site"]
    """The part that the gauge took out, a |x|^2 / rho; zero without a gauge."""
    linear: Float[Tensor, "layer batch site"]
    constant: Float[Tensor, "layer batch site"]
    rest: Float[Tensor, "batch site"]
    """Target minus all of the above: embedding, heads, biases, layers not asked for."""
    target: Float[Tensor, "batch site"]
    """The model's own value, from its logits."""
    provenance: Provenance

    @property
    def shares(self) -> Float[Tensor, "layer batch site"]:
        """Each MLP's whole share."""
        quadratic = self.contributions.sum(-1) + self.remainder + self.trace
        return quadratic + self.linear + self.constant

    @property
    def total(self) -> Float[Tensor, " batch"]:
        """The target summed over its sites: the number that a multi-token target means."""
        return self.target.sum(-1)

    def mode(self, layer: int, index: int, site: int = 0, batch: int = 0) -> Mode:
        """One kept mode, ready for `ablate`; with frozen gates that of one prompt, to be read only.

        `batch` makes no difference where modes come from the weights alone.
        """
        if layer not in self.layers:
            raise ValueError(f"layer {layer} was not attributed: layers are {self.layers}")
        row = self.layers.index(layer)
        frozen = self.eigenvalues.ndim == 4
        place = (row, batch, site, index) if frozen else (row, site, index)
        value = float(self.eigenvalues[place])
        where = self.sites[site] + (", gates frozen" if frozen else "")
        return Mode(
            layer=layer,
            direction=self.mlp_directions[row, site],
            eigenvalue=value,
            eigenvector=self.eigenvectors[place],
            label=f"L{layer}.{index} λ={value:+.3g} ({where})",
        )

    def top(self, k: int, batch: int = 0, site: int = 0) -> tuple[tuple[Mode, float], ...]:
        """The k modes of largest |contribution| in one prompt, with the contribution."""
        flat = self.contributions[:, batch, site].flatten()
        kept = self.contributions.shape[-1]
        order = flat.abs().argsort(descending=True, stable=True)[:k].tolist()
        return tuple(
            (self.mode(self.layers[i // kept], i % kept, site, batch), float(flat[i]))
            for i in order
        )


def attribute_modes(
    model: Any,
    text: Text | Any,
    target: Target,
    *,
    layers: Sequence[int] | None = None,
    positions: Positions = "last",
    k: int | None = 16,
    gauge: Gauge = "none",
) -> Attribution:
    """Contributions of the top-k eigenmodes of each MLP to a target, in float64.

    Args:
        model: a HookedTransformer, a TransformerBridge or a host; a gated one only if it was
            loaded with frozen_gates=True.
        text: a text, several texts, token ids [pos] or [batch, pos] without padding, or the
            model's ActivationCache.
        target: a string (of several tokens: their sum, each read where the model predicts
            it), a token id, a pair (first minus second) or a direction [d_model] that is read
            after the final norm.
        layers: all layers where it is None.
        positions: "last" reads where each prompt ends; "all" reads a single-token target at
            every position, as one site each.
        k: modes kept per layer by |eigenvalue|, None for all; the others stay in `remainder`.
        gauge: "none" or "traceless" (see `eigendecompose`).

    Cost: one forward pass per appended string of tokens, one eigh of d_model^2 per layer and
    site (per layer alone where all sites share a direction, as with positions="all"). With
    frozen gates one per layer, prompt and site, always: positions="all" then costs as many as
    there are tokens.

    Raises:
        NotBilinearError: an MLP whose output its weights do not reproduce.
        ValueError: bad prompts, target, layers, k or gauge.
    """
    host = get_host(model)
    layers = checked_layers(host, layers)
    if k is not None and not 1 <= k <= host.d_model:
        raise ValueError(f"`k` must be between 1 and d_model = {host.d_model}, got {k}")
    require_additive(host)
    hooks = [site(layer) for layer in layers for site in (host.mlp_input_site, host.mlp_out_site)]
    hooks += [hook for layer in layers for hook in writing_hooks(host, layer)]
    reading = take_reading(host, text, target, hooks, positions)
    value = target_values(host, reading)
    parts = [_attribute_layer(host, layer, reading, k, gauge) for layer in layers]
    if any(part["eigenvalues"].ndim == 3 for part in parts):
        parts = [_per_prompt(part) for part in parts]
    stacked = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    explained = stacked["contributions"].sum(-1)
    for name in ("remainder", "trace", "linear", "constant"):
        explained = explained + stacked[name]
    return Attribution(
        layers=layers,
        sites=reading.labels(),
        positions=reading.positions,
        directions=directions(host, reading),
        rest=value - explained.sum(0),
        target=value,
        provenance=provenance(host, frozen_maps(host) + frozen_slopes(host, layers), gauge),
        **stacked,
    )


def _attribute_layer(
    host: AbstractHost,
    layer: int,
    reading: Reading,
    k: int | None,
    gauge: Gauge,
) -> dict[str, Tensor]:
    x = reading.values[host.mlp_input_site(layer)]
    weights = checked_mlp_map(host, layer, x, reading.values[host.mlp_out_site(layer)])
    writing = mlp_writing(host, reading, layer)
    u, rho = writing.direction, writing.scale
    if isinstance(weights, FrozenMap):
        values, vectors, shift = _frozen_eigenpairs(weights, u, k, gauge)
        activations = torch.einsum("bsd,bskd->bsk", x, vectors)
    else:
        values, vectors, shift = _eigenpairs(weights.tensor, u, k, gauge)
        activations = torch.einsum("bsd,skd->bsk", x, vectors)
    contributions = values * activations**2 / rho[..., None]
    trace = shift * x.square().sum(-1) / rho
    quadratic = (weights.quadratic(x) * u).sum(-1) / rho
    return {
        "mlp_directions": u,
        "denominators": rho,
        "eigenvalues": values,
        "eigenvectors": vectors,
        "activations": activations,
        "contributions": contributions,
        "remainder": quadratic - contributions.sum(-1) - trace,
        "trace": trace,
        "linear": (weights.linear(x) * u).sum(-1) / rho,
        "constant": (weights.constant() * u).sum(-1) / rho + writing.offset,
    }


def _per_prompt(part: dict[str, Tensor]) -> dict[str, Tensor]:
    """A layer's modes with the prompt axis that other layers' frozen gates bring."""
    if part["eigenvalues"].ndim == 3:
        return part
    batch = part["denominators"].shape[0]
    names = ("eigenvalues", "eigenvectors")
    return {**part, **{name: part[name].expand(batch, *part[name].shape) for name in names}}


def _frozen_eigenpairs(
    weights: FrozenMap, u: Float[Tensor, "site d_model"], k: int | None, gauge: Gauge
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, vectors and trace shift per prompt and site, one token's map at a time."""
    prompts, sites = weights.slope.shape[:2]
    found = [
        eigendecompose(weights.at(prompt, site).tensor, u[site], k, gauge=gauge)
        for prompt in range(prompts)
        for site in range(sites)
    ]

    def stack(values: list[Tensor]) -> Tensor:
        return torch.stack(values).unflatten(0, (prompts, sites))

    return (
        stack([eigen.eigenvalues for eigen in found]),
        stack([eigen.eigenvectors for eigen in found]),
        stack([eigen.trace_shift for eigen in found]),
    )


def _eigenpairs(
    tensor: BilinearTensor, u: Float[Tensor, "site d_model"], k: int | None, gauge: Gauge
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, vectors and trace shift per site; sites that share a direction share one eigh."""
    if len(u) > 1 and (u == u[0]).all():
        eigen = eigendecompose(tensor, u[:1], k, gauge=gauge)
        values, vectors, shift = eigen.eigenvalues, eigen.eigenvectors, eigen.trace_shift
        sites = len(u)
        return values.expand(sites, -1), vectors.expand(sites, -1, -1), shift.expand(sites)
    eigen = eigendecompose(tensor, u, k, gauge=gauge)
    return eigen.eigenvalues, eigen.eigenvectors, eigen.trace_shift
