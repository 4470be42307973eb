"""A dictionary of features of one activation: what a sparse autoencoder has learned.

    z = act((x - b_dec) W_enc + b_enc)        x ~ z W_dec + b_dec

with act one of

    "relu"         max(p, 0)
    "jumprelu"     max(p, 0) where p is above the feature's threshold, else 0 (2407.14435)
    "topk"         the k largest p of each vector, then max(., 0) (2406.04093)
    "topk-signed"  the k largest p as they are; a negative one only where fewer than k are not
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

Activation = Literal["relu", "jumprelu", "topk", "topk-signed"]
Side = Literal["encoder", "decoder"]


@dataclass(frozen=True, eq=False, repr=False)
class Dictionary:
    """Encoder and decoder of `n` features of a space of `d_in` numbers.

    Raises:
        ValueError: an unknown activation, `k` or `threshold` missing or given where there is
            none, shapes, dtypes or devices that differ, numbers that are not finite.
    """

    encoder: Float[Tensor, "d_in n"]
    encoder_bias: Float[Tensor, " n"]
    decoder: Float[Tensor, "n d_in"]
    """Feature i stands for the direction `decoder[i]`."""
    decoder_bias: Float[Tensor, " d_in"]
    activation: Activation
    hook_name: str = ""
    """The TransformerLens hook whose value it was trained on; empty where nobody said."""
    source: str = ""
    """Folder or hub id that it was read from, or how it was made."""
    k: int | None = None
    """Features kept per vector by "topk" and "topk-signed"."""
    threshold: Float[Tensor, " n"] | None = None
    """Of "jumprelu"."""
    centres_input: bool = True
    """Whether `b_dec` is subtracted from the input."""

    def __post_init__(self):
        _check_activation(self)
        _check_tensors(self)

    @property
    def d_in(self) -> int:
        return self.encoder.shape[0]

    @property
    def n_features(self) -> int:
        return self.encoder.shape[1]

    def preactivations(self, x: Float[Tensor, "*batch {self.d_in}"]) -> Float[Tensor, "*batch n"]:
        """`(x - b_dec) W_enc + b_enc`: linear in x. O(n d_in) per vector."""
        centred = x - self.decoder_bias if self.centres_input else x
        return centred @ self.encoder + self.encoder_bias

    def encode(self, x: Float[Tensor, "*batch {self.d_in}"]) -> Float[Tensor, "*batch n"]:
        """The features' activations. O(n d_in) per vector."""
        before = self.preactivations(x)
        if self.activation == "relu":
            return before.relu()
        if self.threshold is not None:
            return before.relu() * (before > self.threshold).to(before)
        kept = before.topk(self.k or 0, dim=-1)
        values = kept.values if self.activation == "topk-signed" else kept.values.relu()
        return torch.zeros_like(before).scatter(-1, kept.indices, values)

    def decode(
        self, z: Float[Tensor, "*batch {self.n_features}"]
    ) -> Float[Tensor, "*batch {self.d_in}"]:
        """`z W_dec + b_dec`."""
        return z @ self.decoder + self.decoder_bias

    def directions(self, side: Side) -> Float[Tensor, "n d_in"]:
        """One row per feature: the encoder's columns (what a feature reads) or the decoder's rows.

        Raises:
            ValueError: neither "encoder" nor "decoder".
        """
        if side not in get_args(Side):
            raise ValueError(f'give "encoder" or "decoder", got {side!r}')
        return self.encoder.T if side == "encoder" else self.decoder

    def to(self, *args, **kwargs) -> "Dictionary":
        """As `torch.Tensor.to`, on every tensor."""
        return self._mapped(lambda tensor: tensor.to(*args, **kwargs))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "Dictionary":
        return replace(
            self,
            encoder=change(self.encoder),
            encoder_bias=change(self.encoder_bias),
            decoder=change(self.decoder),
            decoder_bias=change(self.decoder_bias),
            threshold=None if self.threshold is None else change(self.threshold),
        )

    def __repr__(self) -> str:
        act = self.activation if self.k is None else f"{self.activation}, k={self.k}"
        where = self.hook_name or "an unnamed hook"
        return f"Dictionary({self.n_features} features of {where} [{self.d_in}], {act})"


def _check_activation(dictionary: Dictionary) -> None:
    activation, k = dictionary.activation, dictionary.k
    if activation not in get_args(Activation):
        raise ValueError(
            f"`activation` {activation!r} is not known: expected one of {get_args(Activation)}"
        )
    if (k is not None) != activation.startswith("topk"):
        raise ValueError(f"`k` belongs to the topk activations, got k={k} with {activation!r}")
    if k is not None and not 1 <= k <= dictionary.encoder.shape[-1]:
        raise ValueError(
            f"`k` must be between 1 and the {dictionary.encoder.shape[-1]} features, got {k}"
        )
    if (dictionary.threshold is not None) != (activation == "jumprelu"):
        given = "none" if dictionary.threshold is None else "one"
        raise ValueError(f'`threshold` belongs to "jumprelu", got {given} with {activation!r}')


def _check_tensors(dictionary: Dictionary) -> None:
    d_in, n = dictionary.encoder.shape if dictionary.encoder.ndim == 2 else (-1, -1)
    expected = {
        "encoder": (d_in, n),
        "encoder_bias": (n,),
        "decoder": (n, d_in),
        "decoder_bias": (d_in,),
        "threshold": (n,),
    }
    tensors = {name: getattr(dictionary, name) for name in expected}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if any(shapes[name] != expected[name] for name in shapes):
        raise ValueError(
            "a dictionary needs encoder [d_in, n], encoder_bias [n], decoder [n, d_in] and "
            f"decoder_bias [d_in] (and threshold [n] for jumprelu), got {shapes}"
        )
    kinds = {(tensor.dtype, tensor.device) for tensor in tensors.values()}
    if len(kinds) != 1:
        raise ValueError(f"a dictionary's tensors must share dtype and device, got {kinds}")
    wrong = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if wrong:
        raise ValueError(
            f"the dictionary's {wrong[0]} has entries that are not finite: it is damaged, or its "
            "training diverged"
        )
