"""`trace_circuit`: from a target down to the tokens, in flows that sum."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tl_bilinear.circuits.bases import AbstractBasis, Basis, Eigenmodes, choose_basis
from tl_bilinear.circuits.budget import LARGER, Budget, search
from tl_bilinear.circuits.circuit import Circuit
from tl_bilinear.circuits.ground import Ground, make_ground
from tl_bilinear.circuits.joins import unsplit
from tl_bilinear.circuits.readers import Ledger
from tl_bilinear.circuits.sweep import Sweep
from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.places import find_places
from tl_bilinear.hosts.prompts import one_prompt, token_names
from tl_bilinear.hosts.provenance import provenance
from tl_bilinear.hosts.replay import replay
from tl_bilinear.hosts.target import Readout, Target, make_readouts
from tl_bilinear.hosts.writing import frozen_slopes, require_additive

Prompt = str | Int[Tensor, " pos"] | Int[Tensor, "1 pos"]


@torch.no_grad()
def trace_circuit(
    model: Any,
    text: Prompt,
    target: Target,
    corrupted: Prompt | None = None,
    *,
    position: int = -1,
    layer: int | None = None,
    max_nodes: int | None = None,
    kept: float | None = None,
    basis: Basis = "eigenmodes",
    tree: bool = False,
    joins: bool = False,
    expand_patterns: bool = False,
    larger_budgets: int | None = LARGER,
) -> Circuit:
    """The circuit through which a target comes from the tokens of a prompt, in float64.

    One sweep from the target down carries one accumulated direction per layer and position
    (DESIGN 2.4); its eigenmodes, and the edges of heads, become nodes where their |share| is
    large, and remainders hold the rest, so that the sources always sum to the target. Products
    are split equally between their factors: a convention, neither an ablation effect nor a
    Shapley value.

    Args:
        model: a HookedTransformer, a TransformerBridge or a host; a gated one only if it was
            loaded with frozen_gates=True.
        text: one prompt, as text or token ids.
        target: a string (of several tokens: their sum, each read where the model predicts it), a
            token id, a pair (first minus second) or a direction [d_model], which is read after
            the final norm.
        corrupted: another prompt of as many tokens. What is traced is then the difference of the
            target, `text` minus `corrupted`, with nothing frozen (DESIGN 2.6): changes of tokens,
            patterns and denominators are the sources.
        position: where a target of one token, or a direction, is read.
        layer: a direction is then one of the stream behind this layer.
        max_nodes: the budget: modes and head edges at the most; 100 where nothing is said.
        kept: or the part of the sum of |shares| over the sources that is to be traced to tokens.
        basis: what MLPs are taken apart into: "eigenmodes"; "neurons"; "random", "w_out" (its
            singular vectors); "hosvd" (output modes) or "tucker" (input modes); dictionaries
            {layer: Dictionary}; a basis of your own (`circuits.bases`).
        tree: take the direction of every reader apart for itself, instead of their sum.
        joins: leave the product of two sources in a mode whole, as a node between them and the
            mode.
        expand_patterns: of a contrast: patterns' changes that are nodes are read on through
            their scores, to what changed in queries and keys (`circuits.scores`).
        larger_budgets: how many budgets beyond this one, each at half the threshold before, are
            measured for `settings["budget_curve"]`: [nodes, kept share, |target - kept| /
            |target|] of each. None: all, until 0.97 is kept (many sweeps, each dearer).

    Cost: a forward pass per branch of the target; a sweep for each of about ten thresholds, each
    an eigh of d_model^2 per (layer, position) whose whole share could hold a node.

    Raises:
        NotBilinearError: a gated model without frozen gates; an MLP whose output its weights do
            not reproduce.
        ValueError: bad prompts, target, position, layer, budget or basis; prompts of different
            lengths; a prompt longer than the context; joins of another basis or of a contrast.
    """
    host = get_host(model)
    require_additive(host)
    budget = Budget.of(max_nodes, kept)
    chosen = choose_basis(host, basis)
    _require_fitting(chosen, joins, corrupted is not None)
    if expand_patterns and corrupted is None:
        raise ValueError("`expand_patterns` is of a contrast, where patterns change: give one")
    ground = _ground(host, text, target, corrupted, position, layer, expand_patterns)
    sweep = Sweep(ground, chosen, tree)
    found = search(sweep, budget, larger_budgets)
    circuit = build_circuit(ground, found.ledger, {**_settings(sweep), **found.settings})
    return unsplit(circuit) if joins else circuit


@torch.no_grad()
def make_sweep(
    model: Any, text: Prompt, target: Target, basis: Basis = "eigenmodes", *, tree: bool = False
) -> Sweep:
    """What `trace_circuit` runs at several thresholds, for one prompt: to run it at others."""
    host = get_host(model)
    ground = _ground(host, text, target, None, -1, None)
    return Sweep(ground, choose_basis(host, basis), tree)


def build_circuit(ground: Ground, ledger: Ledger, settings: dict[str, Any]) -> Circuit:
    """The circuit of a finished sweep."""
    nodes, edges = ledger.build(ground.target)
    host, places = ground.host, ground.runs[0].places
    frozen: tuple[str, ...] = ()
    if len(ground.runs) == 1:
        frozen = ("attention patterns", "norms' denominators")
        frozen += frozen_slopes(host, range(ground.n_layers))
    return Circuit(
        nodes=nodes,
        edges=edges,
        tokens=tuple(token_names(host, places.tokens)),
        target_label=ground.target_label,
        target=ground.target,
        n_layers=ground.n_layers,
        provenance=provenance(host, frozen, "none"),
        settings=settings,
        modes=ledger.modes,
    )


def _settings(sweep: Sweep) -> dict[str, Any]:
    contrast = len(sweep.ground.runs) == 2
    return {
        "split": "equal split: half of a product to each factor",
        "trace": "contrast, nothing frozen" if contrast else "one prompt, frozen",
        "basis": sweep.basis.name,
        "tree": sweep.tree,
        "patterns expanded": sweep.ground.expand_patterns,
    }


def _require_fitting(basis: AbstractBasis, joins: bool, contrast: bool) -> None:
    if contrast and not basis.takes_contrasts:
        raise ValueError(
            f"the basis {basis.name!r} cannot take a contrast apart: which features are active "
            "differs between the prompts. Use eigenmodes, or directions"
        )
    if joins and (contrast or not isinstance(basis, Eigenmodes)):
        raise ValueError(
            "joins are pairs of sources in an eigenmode's square: leave `corrupted` out and "
            '`basis` at "eigenmodes"'
        )


def _ground(
    host: AbstractHost,
    text: Prompt,
    target: Target,
    corrupted: Prompt | None,
    position: int,
    layer: int | None,
    expand_patterns: bool = False,
) -> Ground:
    prompts = [one_prompt(host, text)]
    if corrupted is not None:
        prompts.append(one_prompt(host, corrupted, "corrupted"))
        if len(prompts[0]) != len(prompts[1]):
            raise ValueError(
                f"a contrast needs prompts of one length, got {len(prompts[0])} and "
                f"{len(prompts[1])} tokens: reword one of them"
            )
    readouts = _readouts(host, target, text, corrupted, layer)
    place = _place(position, len(prompts[0]), readouts)
    found = [find_places(prompt, readouts, place) for prompt in prompts]
    runs = [replay(host, each, layer) for each in found]
    return make_ground(host, runs, layer, expand_patterns)


def _readouts(
    host: AbstractHost,
    target: Target,
    text: Prompt,
    corrupted: Prompt | None,
    layer: int | None,
) -> tuple[Readout, ...]:
    prompts = [each for each in (text, corrupted) if each is not None]
    rows = [each if isinstance(each, str) else each.reshape(-1) for each in prompts]
    readouts = make_readouts(host, target, rows)
    if layer is None:
        return readouts
    if not 0 <= layer < host.n_layers:
        raise ValueError(f"`layer` {layer} is out of range: this model has {host.n_layers} layers")
    if not isinstance(target, Tensor):
        raise ValueError(
            "with `layer` a target is a direction [d_model] of the stream behind that layer, got "
            f"{type(target).__name__}"
        )
    direction = readouts[0].direction
    return (Readout((), {}, direction, f"direction behind layer {layer}"),)


def _place(position: int, length: int, readouts: Sequence[Readout]) -> int:
    if not -length <= position < length:
        raise ValueError(
            f"`position` {position} is out of range: the prompt has {length} tokens "
            f"(0-{length - 1})"
        )
    place = position % length
    if place != length - 1 and any(readout.prefix for readout in readouts):
        raise ValueError(
            "a target of several tokens is read behind the prompt: leave `position` at -1"
        )
    return place
