"""Features of sparse dictionaries of what an MLP reads or gives, active ones only.

A feature's activation is z_i = e_i . h + c_i while it is active, e_i its encoder row. On the
input side x holds z_i v_i, on the output side y holds z_i d_i; what the dictionary does not
reconstruct stays in the remainder, and c_i's part of a share is a bias. Which features are active
is taken from the forward pass, so a contrast cannot use them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_bilinear.circuits.bases.basis import AbstractBasis, Chosen, Elements, Site
from tl_bilinear.circuits.parts import AbstractParts, FeatureParts
from tl_bilinear.decompositions import Mode
from tl_bilinear.dictionary import Dictionary
from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.tensor import BilinearTensor


@dataclass(frozen=True, eq=False)
class _Layer:
    dictionary: Dictionary
    gain: Float[Tensor, " d_model"]
    """From the normalised stream to the dictionary's hook; ones on the output side."""
    bias: Float[Tensor, " d_model"]
    reads: bool
    """Whether it is of the MLP's input."""


@final
@dataclass(frozen=True, eq=False)
class Features(AbstractBasis):
    """Made by `dictionary_features`."""

    layers: Mapping[int, _Layer]
    name: str = "dictionary"
    takes_contrasts: bool = False

    def elements(self, sites: Sequence[Site]) -> list[Elements]:
        """All features at each site of one layer. O((n + rank) d) per site."""
        if sites[0].layer not in self.layers:
            raise ValueError(
                f"there is no dictionary for layer {sites[0].layer}: combine with another basis by "
                "PerLayer"
            )
        own = self.layers[sites[0].layer]
        return [(_Read if own.reads else _Written)(site, own) for site in sites]

    def parts(
        self, tensor: BilinearTensor, layer: int, index: tuple[int, ...], modes: Sequence[Mode]
    ) -> AbstractParts:
        """Features, with whatever activation the dictionary gives."""
        own = self.layers[layer]
        return FeatureParts(tensor, index, own.dictionary, own.gain, own.bias, own.reads)


def dictionary_features(host: AbstractHost, dictionaries: Mapping[int, Dictionary]) -> Features:
    """The features of dictionaries, one per layer, as a basis.

    Raises:
        ValueError: a dictionary of another hook than the MLP's input behind its norm, with or
            without gain, or its output; an output dictionary of an MLP with biases.
    """
    layers = {}
    for layer, dictionary in dictionaries.items():
        norm, hook = host.mlp_norm(layer), dictionary.hook_name
        one = torch.ones(host.d_model, dtype=torch.float64, device=host.device)
        gain, bias, reads = one, torch.zeros_like(one), True
        block = f"blocks.{layer}."
        if hook in (f"{block}mlp.hook_in", f"{block}ln2.hook_out"):
            gain = one if norm.gain is None else norm.gain.double()
            bias = bias if norm.bias is None else norm.bias.double()
        elif hook == host.mlp_out_site(layer) or (
            hook in (f"{block}mlp.hook_out", f"{block}hook_mlp_out")
            and not host.mlp_post_norm(layer).exists
        ):
            reads = False
            _require_no_biases(host, layer)
        elif hook != host.mlp_input_site(layer):
            raise ValueError(
                f"the dictionary was trained on {hook!r}; features of layer {layer}'s MLP as nodes "
                f"are those of {host.mlp_input_site(layer)}, {block}mlp.hook_in or "
                f"{block}mlp.hook_out"
            )
        if not gain.all():
            raise ValueError(f"layer {layer}: the norm's gain has zeros, which no feature survives")
        layers[layer] = _Layer(dictionary.to(torch.float64), gain, bias, reads)
    return Features(layers)


def _require_no_biases(host: AbstractHost, layer: int) -> None:
    weights = host.folded_mlp_weights(layer)
    if any(bias.any() for bias in (weights.left_bias, weights.right_bias, weights.out_bias)):
        raise ValueError(
            f"layer {layer}'s MLP has biases, so features of its output mix quadratic and linear "
            "parts: use a dictionary of its input"
        )


class _Read(Elements):
    """x = sum_i z_i v_i + ..., v_i the decoder row behind the gain."""

    def __init__(self, site: Site, own: _Layer):
        self.site, dictionary = site, own.dictionary
        self.z = dictionary.encode(own.gain * site.mid + own.bias)
        self.rows = dictionary.decoder / own.gain
        self.duals = dictionary.encoder.T * own.gain
        self.values = self.rows @ site.back(site.u, site.mid)
        self.shares = self.z * self.values

    def choose(self, index: Int[Tensor, " chosen"]) -> Chosen:
        site, z, rows = self.site, self.z[index], self.rows[index]
        duals, values = self.duals[index], self.values[index]
        ways = z[:, None] * site.back(site.u, rows) + values[:, None] * duals
        tensor = site.map.tensor
        mixed = (rows @ tensor.left) * (site.mid @ tensor.right)
        mixed = z[:, None] * (mixed + (rows @ tensor.right) * (site.mid @ tensor.left)) / 2
        return Chosen(
            flows=(site.readers @ tensor.out) @ mixed.T,
            directions=ways / 2,
            constants=values * (z - duals @ site.mid) / 2,
            labels=tuple(f"feature {i}" for i in index.tolist()),
            details=_details(z),
        )


class _Written(Elements):
    """y = sum_i z_i d_i + ..."""

    def __init__(self, site: Site, own: _Layer):
        self.site, self.own = site, own
        y = site.map.tensor.out @ site.products()
        self.z = own.dictionary.encode(y)
        self.linear = own.dictionary.encoder.T @ y
        self.shares = (own.dictionary.decoder @ site.u) * self.z

    def choose(self, index: Int[Tensor, " chosen"]) -> Chosen:
        site, z, dictionary = self.site, self.z[index], self.own.dictionary
        weights = site.readers @ dictionary.decoder[index].T
        total = weights.sum(0)
        ways = site.back(dictionary.encoder.T[index], site.mid)
        return Chosen(
            flows=weights * z,
            directions=total[:, None] * ways,
            constants=total * (z - self.linear[index]),
            labels=tuple(f"feature {i}" for i in index.tolist()),
            details=_details(z),
        )


def _details(z: Tensor) -> tuple[dict[str, Any], ...]:
    return tuple({"activation": value} for value in z.tolist())
