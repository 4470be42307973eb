"""Where a dictionary's features live beside an MLP, by the hook that it was trained on.

On the input side three hooks differ by the norm: the stream (`hook_resid_mid`), the normalised
stream (`ln2.hook_normalized`), and what the MLP multiplies, which the norm's gain and bias have
passed (`mlp.hook_in`). On the output side a norm may stand between the MLP (`mlp.hook_out`) and
what is added to the stream (`hook_mlp_out`).
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.hosts.norm import NO_NORM, Norm
from tl_bilinear.quadratic_map import QuadraticMap


@dataclass(frozen=True, eq=False)
class InputSite:
    """A space that input features are directions of."""

    hook: str
    weights: QuadraticMap
    """The MLP as a map of the hook's values, up to the denominators in `frozen`."""
    frozen: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class OutputSite:
    """A space that output features read."""

    hook: str
    readable: str
    """The hook of this host that holds the same values."""
    norm: Norm
    """Between the MLP's output and the hook."""
    scale_hook: str | None
    """The hook of that norm's denominator, [batch, pos, 1]."""
    frozen: tuple[str, ...]

    def fold(self, u: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """u as a direction of the MLP's own output."""
        return self.norm.fold_readout(u)


def input_site(host: AbstractHost, layer: int, hook_name: str) -> InputSite:
    """The space of features trained on `hook_name`, as one that layer's MLP reads.

    Raises:
        NotBilinearError: a gated MLP.
        ValueError: no such layer; no hook name; a hook that is not at this MLP's input.
    """
    block, norm = f"blocks.{layer}.", host.mlp_norm(layer)
    own = host.mlp_input_site(layer)
    multiplied = {f"{block}mlp.hook_in"}
    stream = {f"{block}hook_resid_mid", f"{block}hook_mlp_in"}
    if norm.exists:
        multiplied.add(f"{block}ln2.hook_out")
        stream.add(f"{block}ln2.hook_in")
    normalised = host.mlp_map(layer)  # refuses a gated MLP, whichever the hook
    if hook_name == own:
        return InputSite(hook_name, normalised, ())
    if hook_name in multiplied:
        return InputSite(hook_name, host.mlp_weights(layer), ())
    if hook_name in stream:
        frozen = (f"layer {layer}'s MLP norm's denominator",) if norm.exists else ()
        return InputSite(hook_name, normalised, frozen)
    raise ValueError(_refusal("input", layer, hook_name, [own, *sorted(multiplied | stream)]))


def output_site(host: AbstractHost, layer: int, hook_name: str) -> OutputSite:
    """The space of features trained on `hook_name`, as one that layer's MLP writes to.

    Raises:
        ValueError: no such layer; no hook name; a hook that is not at this MLP's output.
    """
    norm, scale = host.mlp_post_norm(layer), host.mlp_post_scale_site(layer)
    own, added = f"blocks.{layer}.mlp.hook_out", f"blocks.{layer}.hook_mlp_out"
    after = f"blocks.{layer}.hook_resid_post"
    if hook_name == own:
        return OutputSite(hook_name, host.mlp_out_site(layer), NO_NORM, None, ())
    if hook_name in (added, after):
        frozen = (f"layer {layer}'s post-norm's denominator",) if norm.exists else ()
        return OutputSite(hook_name, hook_name, norm, scale, frozen)
    raise ValueError(_refusal("output", layer, hook_name, [own, added, after]))


def _refusal(side: str, layer: int, hook_name: str, allowed: list[str]) -> str:
    said = f"was trained on {hook_name!r}" if hook_name else "does not say what it was trained on"
    return (
        f"the {side} dictionary {said}, and features of layer {layer}'s MLP {side} are those of "
        f"{', '.join(dict.fromkeys(allowed))}. Give another layer or dictionary, or, where you "
        "know better, dataclasses.replace(dictionary, hook_name=...)"
    )
