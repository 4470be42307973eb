"""Where flows come from: tokens, positions, constants, and the changes of a contrast."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from tl_bilinear.circuits.ground import Ground
from tl_bilinear.circuits.readers import LOGIT, Ledger, Readers
from tl_bilinear.circuits.steps import NormStep

BELOW = -1.0
"""The height of sources."""
WHAT = {
    "mlp": "MLP {layer}",
    "attention": "attention {layer}",
    "basis": "the basis of MLP {layer}",
    "mlp_post": "the norm behind MLP {layer}",
    "attention_post": "the norm behind attention {layer}",
    "final": "the final norm",
}


def start(ground: Ground, ledger: Ledger, readers: Readers) -> None:
    """The target's readouts, and what reaches them without any input."""
    single = len(ground.readouts) == 1
    place = ground.readouts[0][0] if single else None
    ledger.node(LOGIT, "logit", ground.target_label, 2.0 * ground.n_layers, position=place)
    for place, direction, constant in ground.readouts:
        if constant:
            ledger.node("bias.out", "bias", "biases of the unembedding", BELOW)
            ledger.flow("bias.out", [LOGIT], direction.new_tensor([constant]))
        if ground.final is not None:
            add_drift(ledger, None, "final", ground.final, place, [LOGIT], direction[None])
            direction = ground.final.back(direction, place)
        readers.add(place, [LOGIT], direction[None])


def finish(ground: Ground, ledger: Ledger, readers: Readers) -> None:
    """Tokens and positions, where the sweep ends."""
    for place in readers.active:
        names, directions = readers.names[place], readers.directions[place]
        token = f"E.{place}"
        label, index = ground.tokens[place]
        ledger.node(token, "token", label, BELOW, position=place, index=index)
        ledger.flow(token, names, directions @ ground.token_part[place])
        if ground.position_part is not None:
            ledger.node(f"P.{place}", "bias", f"position {place}", BELOW, position=place)
            ledger.flow(f"P.{place}", names, directions @ ground.position_part[place])


def add_bias(
    ledger: Ledger,
    layer: int,
    what: str,
    names: Sequence[str],
    shares: Float[Tensor, " reader"],
) -> None:
    """What the constants of a sublayer are worth to its readers: one node for all places."""
    if shares.any():
        id = f"bias.L{layer}.{what}"
        ledger.node(id, "bias", f"biases of {WHAT[what].format(layer=layer)}", BELOW, layer=layer)
        ledger.flow(id, names, shares)


def add_drift(
    ledger: Ledger,
    layer: int | None,
    what: str,
    norm: NormStep,
    place: int,
    names: Sequence[str],
    directions: Float[Tensor, "reader d_model"],
) -> None:
    """What a denominator's change is worth to directions behind its norm; nothing if frozen."""
    if norm.drift is None:
        return
    where = WHAT[what].format(layer=layer)
    start = f"norm.{what}" if layer is None else f"norm.L{layer}.{what}"
    ledger.node(
        f"{start}.{place}",
        "change",
        f"denominator before {where}" if "norm" not in where else f"denominator of {where}",
        BELOW,
        layer=layer,
        position=place,
        others=(f"{start}.others", f"small changes of denominators, {where}"),
    )
    ledger.flow(f"{start}.{place}", names, directions @ norm.drift[place])
