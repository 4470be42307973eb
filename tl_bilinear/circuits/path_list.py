"""Every term of a one-layer model by name: which sources, which form, what divides it."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement

from tl_bilinear.circuits.one_layer import FINAL, MLP, MLP_POST, OneLayer
from tl_bilinear.circuits.path_forms import Fixed, Form, bias_form, linear_form, pair_form
from tl_bilinear.circuits.virtual_source import VirtualSource

ONE = "1"
"""The name of the MLP's own biases as a source, which the MLP's norm does not divide."""


@dataclass(frozen=True, eq=False)
class NamedForm:
    """One term before its norm is known."""

    form: Form
    sources: tuple[str, ...]
    families: tuple[VirtualSource, ...]
    """The sources that depend on something, each once per argument."""
    denominators: Mapping[str, int]
    patterns: tuple[int, ...]


def linear_name(source: str) -> str:
    return f"W_U {source}"


def pair_name(first: str, second: str) -> str:
    return f"W_U B({first}, {second})"


def named_forms(layer: OneLayer) -> dict[str, NamedForm]:
    """The terms in order: past the MLP, pairs of sources, the MLP's linear part, constants."""
    tensor, found = layer.mlp.tensor, {}
    for source in layer.sources:
        powers = layer.powers(FINAL, *_names(source))
        form = linear_form(source, tensor)
        found[linear_name(source.name)] = _named(form, (source,), (source.name,), powers)
    for first, second in combinations_with_replacement(layer.sources, 2):
        powers = layer.powers(MLP, MLP, MLP_POST, FINAL, *_names(first), *_names(second))
        form, names = pair_form(first, second, tensor), (first.name, second.name)
        once = first is second and not (first.head is not None and first.argument)
        families = (first,) if once else (first, second)
        found[pair_name(*names)] = _named(form, families, names, powers)
    return found | _biased(layer)


def _biased(layer: OneLayer) -> dict[str, NamedForm]:
    """The terms of the MLP's own biases, and of those behind it; none that is zero."""
    found, mlp = {}, layer.mlp
    if mlp.left_bias.count_nonzero() or mlp.right_bias.count_nonzero():
        for source in layer.sources:
            powers = layer.powers(MLP, MLP_POST, FINAL, *_names(source))
            form = bias_form(source, mlp.tensor, mlp.left_bias, mlp.right_bias)
            names = (source.name, ONE)
            found[pair_name(*names)] = _named(form, (source,), names, powers)
    constant = mlp.constant()
    if constant.count_nonzero():
        powers = layer.powers(MLP_POST, FINAL)
        found[pair_name(ONE, ONE)] = _named(Fixed(constant), (), (ONE, ONE), powers)
    if layer.mlp_post_bias is not None and layer.mlp_post_bias.count_nonzero():
        name = "W_U b_mlp post"
        found[name] = _named(Fixed(layer.mlp_post_bias), (), (), layer.powers(FINAL))
    if layer.logit_bias.count_nonzero():
        found["b_U"] = _named(Fixed(layer.logit_bias, on_logits=True), (), (), {})
    return found


def _names(source: VirtualSource) -> list[str]:
    return [name for name, power in source.denominators.items() for _ in range(power)]


def _named(
    form: Form,
    families: tuple[VirtualSource, ...],
    names: tuple[str, ...],
    powers: dict[str, int],
) -> NamedForm:
    with_argument = tuple(source for source in families if source.argument is not None)
    heads = tuple(source.head for source in with_argument if source.head is not None)
    return NamedForm(form, names, with_argument, powers, heads)
