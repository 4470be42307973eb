"""Random circuits whose flows are conserved, for tests and for pictures that are looked at."""

import math
import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from tl_bilinear.circuits import Circuit, Edge, Node
from tl_bilinear.hosts.provenance import Provenance

HOSTILE = (
    "<s>",
    '"quoted"',
    "it's",
    "</script>",
    "\n",
    "👩\u200d🚀",
    "你好",
    "مرحبا",
    "שלום",
    "\u202egnp",
    "back\\slash",
    "&amp;",
    "$x^2$",
    "`tick`",
    "%%{init}%%",
    "1. item",
    "\x00",
    "\r",
    "#35;",
    " ",
    "",
    "\ud83d",
)
WORDS = tuple(
    " Once| upon| a| time|,| there| was| little| girl| named| Lily|.| She| went| to| the| park"
    "| with| her| mom| saw| boy| Tim| sad| because| he| lost".split("|")
)


def story(n: int) -> tuple[str, ...]:
    return ("<s>", *(WORDS * (1 + n // len(WORDS))))[:n]


@dataclass
class Growing:
    """A circuit that is grown from its target down to its sources."""

    rng: random.Random
    tokens: tuple[str, ...]
    n_layers: int
    specs: dict[str, dict[str, Any]] = field(default_factory=dict)
    inflow: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))

    def stage(self, name: str) -> float:
        """Where a node stands in the order of computation."""
        spec = self.specs[name]
        if spec["kind"] in ("token", "bias", "remainder", "change"):
            return -1.0
        if spec["kind"] == "logit":
            return math.inf
        return 2 * spec["layer"] + {"head": 0.0, "join": 1.0, "mode": 1.5}[spec["kind"]]

    def add(self, name: str, kind: str, **spec: Any) -> str:
        self.specs.setdefault(name, {"kind": kind, **spec})
        return name

    def input_of(self, name: str, grow: bool) -> str:
        """A node, new or present, that may flow into `name`."""
        rng, spec = self.rng, self.specs[name]
        position = spec["source_position"] if spec["kind"] == "head" else spec["position"]
        below = self.n_layers if spec["kind"] == "logit" else spec["layer"]
        attention = below + (spec["kind"] != "head" and spec["kind"] != "logit")
        kinds = ["token", "token", "remainder", "bias", "change"]
        if grow and below > 0:
            kinds += ["mode"] * 6 + ["join"]
        if grow and attention > 0:
            kinds += ["head"] * 5
        kind = rng.choice(kinds)
        layer = rng.randrange(attention if kind == "head" else max(below, 1))
        if kind == "token":
            return self.add(
                f"E.{position}",
                kind,
                position=position,
                index=97 + position,
                label=self.tokens[position],
            )
        if kind == "mode":
            index = rng.randrange(3)
            return self.add(
                f"L{layer}.m{index}.{position}", kind, layer=layer, position=position, index=index
            )
        if kind == "head":
            head, source = rng.randrange(8), rng.randrange(position + 1)
            return self.add(
                f"L{layer}H{head}.{source}.{position}",
                kind,
                layer=layer,
                position=position,
                source_position=source,
                index=head,
                label=f"L{layer}H{head}",
            )
        where = {"layer": layer, "position": None if kind == "bias" else position}
        label = {"join": "⊗", "bias": f"b{layer}", "change": f"1/ρ L{layer}"}.get(kind, "rest")
        return self.add(f"{kind}.{layer}.{where['position']}", kind, label=label, **where)


def random_circuit(
    seed: int,
    *,
    n_inner: int = 10,
    n_layers: int = 3,
    tokens: tuple[str, ...] = story(12),
    names: tuple[str, ...] = WORDS,
    cancel: float = 0.15,
):
    """A circuit of about `n_inner` heads, modes and joins; `cancel`: the part of negative flows."""
    rng = random.Random(seed)
    growing = Growing(rng, tokens, n_layers)
    last = len(tokens) - 1
    growing.add("logit", "logit", position=last, label="' his' − ' her'", layer=None)
    done: set[str] = set()
    share = {"logit": 2.5}
    while waiting := [name for name in growing.specs if name not in done]:
        name = max(waiting, key=growing.stage)
        done.add(name)
        if growing.stage(name) < 0:
            continue
        n_inner_now = sum(growing.stage(other) >= 0 for other in growing.specs) - 1
        want = 2 if growing.specs[name]["kind"] == "join" else rng.choice([1, 2, 2, 3, 4])
        want = 6 if name == "logit" else want
        sources: dict[str, None] = {}
        for _ in range(20 * want):
            if len(sources) == want:
                break
            source = growing.input_of(name, n_inner_now + len(sources) <= n_inner)
            if source not in done or growing.stage(source) < 0:
                sources[source] = None
        total = share[name]
        weights = [rng.random() * (-1 if rng.random() < cancel else 1) + 0.05 for _ in sources]
        flows = [total * weight / sum(map(abs, weights)) for weight in weights]
        flows[-1] = total - math.fsum(flows[:-1])
        for source, flow in zip(sources, flows, strict=True):
            growing.inflow[name][source] = flow
            share[source] = share.get(source, 0.0) + flow
    outflow: dict[str, list[float]] = defaultdict(list)
    for flows in growing.inflow.values():
        for source, flow in flows.items():
            outflow[source].append(flow)
    share = {n: math.fsum(outflow[n]) if n in outflow else s for n, s in share.items()}
    nodes = [
        Node(**_finished(rng, name, spec, share[name], names))
        for name, spec in sorted(growing.specs.items(), key=lambda item: growing.stage(item[0]))
    ]
    edges = [
        Edge(source, target, flow)
        for target, flows in growing.inflow.items()
        for source, flow in flows.items()
    ]
    return Circuit(
        nodes=tuple(nodes),
        edges=tuple(edges),
        tokens=tokens,
        target_label="' his' − ' her'",
        target=2.5,
        n_layers=n_layers,
        provenance=Provenance(
            "stories-5l", "0" * 12, "HookedTransformer", "v 1", ("attention patterns",), "none"
        ),
        settings={"split": "equal", "budget": 0.8},
    )


def _finished(
    rng: random.Random, name: str, spec: dict[str, Any], share: float, names: tuple[str, ...]
) -> dict[str, Any]:
    spec = {"id": name, "share": share, **spec}
    if spec["kind"] == "mode":
        eigenvalue = rng.gauss(0, 2)
        spec["label"] = f"λ={eigenvalue:+.3g}"
        spec["details"] = {
            "eigenvalue": eigenvalue,
            "activation": rng.gauss(0, 1),
            "top_tokens": [rng.choice(names) for _ in range(5)],
            "bottom_tokens": [rng.choice(names) for _ in range(3)],
            "spectrum": sorted((rng.gauss(0, 1) for _ in range(12)), key=lambda v: -abs(v)),
            "examples": [["".join(rng.choice(names) for _ in range(9)), rng.random()]] * 2,
        }
    return spec


@st.composite
def circuits(draw):
    """Random circuits of 0 to 25 inner nodes, flows of both signs."""
    options: dict[str, Any] = {
        "n_inner": draw(st.integers(0, 25)),
        "n_layers": draw(st.integers(1, 4)),
        "tokens": tuple(draw(st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=8))),
        "cancel": draw(st.sampled_from([0.0, 0.15, 0.5])),
    }
    seed = draw(st.integers(0, 2**16))
    state = random.getstate()  # the type checker draws from it, which hypothesis forbids here
    circuit = random_circuit(seed, **options)
    random.setstate(state)
    return circuit
