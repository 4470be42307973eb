"""What the modes of a circuit read: tokens, examples and spectra, kept in its nodes."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tl_bilinear.attribution.reading import Example, reading_tokens, top_examples
from tl_bilinear.circuits.circuit import Circuit, Node
from tl_bilinear.decompositions import Mode, eigendecompose
from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.writing import frozen_slopes

EIGENVALUES = 24


def read_modes(model: Any, circuit: Circuit, texts: Iterable[str] = (), *, k: int = 6) -> Circuit:
    """The circuit with what each of its eigenmodes reads in the mode's details.

    `top_tokens`: whose embedding alone activates it most with the sign that it has in this
    circuit, `opposite_tokens` with the other sign (the mode adds the same: v.x is squared), each
    with its v.x; `spectrum`: the 24 largest eigenvalues of its interaction matrix, of which the
    mode is number `index`; `examples`: windows of the texts around its largest |v.x|. Pictures
    name modes by their top tokens.

    O(d_vocab d_model) per mode, an eigh of d_model^2 per direction, a forward pass per text.

    Args:
        texts: to choose tokens from (embeddings of tokens that never occur are noise; without
            texts the whole vocabulary) and examples.

    Raises:
        ValueError: a circuit without its modes, as one that was read from a file.
    """
    host = get_host(model)
    nodes = [node for node in circuit.nodes if node.kind == "mode"]
    missing = [node.id for node in nodes if node.id not in circuit.modes]
    if nodes and len(missing) == len(nodes):
        raise ValueError(
            "this circuit has no modes to read (files and other bases hold none): trace it again"
        )
    texts = list(texts)
    among = {token for text in texts for token in host.to_tokens(text).tolist()} or None
    named = {node.id: circuit.modes[node.id] for node in nodes if node.id in circuit.modes}
    examples = top_examples(host, list(named.values()), texts, k=4) if texts and named else ()
    windows = dict(zip(named, examples, strict=True)) if examples else {}
    spectra: dict[tuple[int, int], list[float]] = {}
    found = {}
    for node in nodes:
        if node.id in named:
            mode = named[node.id]
            details = {
                **_tokens(host, node, mode, k, among),
                **_spectrum(host, mode, spectra),
                **_examples(windows.get(node.id, ())),
            }
            found[node.id] = replace(node, details={**node.details, **details})
    return replace(circuit, nodes=tuple(found.get(node.id, node) for node in circuit.nodes))


def _tokens(
    host: AbstractHost, node: Node, mode: Mode, k: int, among: set[int] | None
) -> dict[str, Any]:
    reading = reading_tokens(host, mode, k, among=among)
    sides = [reading.positive, reading.negative]
    if float(node.details.get("activation", 0.0)) < 0:
        sides.reverse()
    names = ("top_tokens", "opposite_tokens")
    return {
        name: [[token, value] for token, value in side]
        for name, side in zip(names, sides, strict=True)
    }


def _spectrum(
    host: AbstractHost, mode: Mode, known: dict[tuple[int, int], list[float]]
) -> dict[str, Any]:
    """None with frozen gates, where every position has a map of its own."""
    if frozen_slopes(host, [mode.layer]):
        return {}
    key = (mode.layer, mode.direction.data_ptr())
    if key not in known:
        eigen = eigendecompose(host.mlp_tensor(mode.layer), mode.direction, k=None)
        known[key] = eigen.eigenvalues[:EIGENVALUES].tolist()
    return {"spectrum": known[key]}


def _examples(windows: Iterable[Example]) -> dict[str, Any]:
    rows = [["".join(window.tokens), window.activations[window.peak]] for window in windows]
    return {"examples": rows} if rows else {}
