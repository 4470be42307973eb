"""One sweep from the target down to the tokens, with everything that is not followed in sight.

At every layer and place the readers above are one accumulated direction u (or, in a tree, each
for itself). What an MLP is worth to it is taken apart by a basis; elements whose |share| reaches
the threshold become nodes, whose directions are read from there on, and the rest goes to that
place's remainder. The same holds for the edges of heads. An MLP's linear part has no node: it
passes its readers on. Constants are bias nodes, one per sublayer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tl_bilinear.circuits.bases import AbstractBasis, Elements, Site
from tl_bilinear.circuits.ground import Ground
from tl_bilinear.circuits.heads import step_attention
from tl_bilinear.circuits.readers import Ledger, Readers, reaches
from tl_bilinear.circuits.sources import add_bias, add_drift, finish, start
from tl_bilinear.circuits.steps import LayerStep, NormStep


@dataclass(frozen=True, eq=False)
class Sweep:
    """How to trace; `run` does it."""

    ground: Ground
    basis: AbstractBasis
    tree: bool = False
    """Every reader's direction is taken apart for itself."""

    def run(self, threshold: float, *, merged: bool = False) -> Ledger:
        """The ledger of everything whose |share| reaches the threshold.

        Args:
            merged: nodes only, no edges between them (all go to the target): quicker, and as good
                where only shares are asked for. A tree is never merged.
        """
        ground, ledger = self.ground, Ledger()
        readers = Readers(ground.token_part, merged and not self.tree)
        start(ground, ledger, readers)
        for layer in reversed(range(ground.n_layers)):
            step = ground.step(layer)
            self._mlp(layer, step, threshold, ledger, readers)
            groups = self.groups
            step_attention(layer, step, threshold, ledger, readers, groups)
        finish(ground, ledger, readers)
        ledger.gather(threshold)
        return ledger

    def groups(self, n_readers: int) -> list[list[int]]:
        """The readers that are taken together."""
        return [[i] for i in range(n_readers)] if self.tree else [list(range(n_readers))]

    def _mlp(
        self, layer: int, step: LayerStep, threshold: float, ledger: Ledger, readers: Readers
    ) -> None:
        """Modes and remainders of one layer's MLP."""
        sites: list[tuple[Site, list[str]]] = []
        for place in readers.active:
            names, directions = readers.names[place], readers.directions[place]
            back = step.behind_mlp.back(directions, place)
            own = step.maps.at(place)
            if step.mlp_bias is not None:
                bias = directions @ step.mlp_bias + back @ own.constant()
                add_bias(ledger, layer, "mlp", names, bias)
            add_drift(ledger, layer, "mlp_post", step.behind_mlp, place, names, directions)
            for group in self.groups(len(names)):
                site = Site(layer, place, own, step.mid[place], step.end[place], back[group])
                sites.append((site, [names[i] for i in group]))
            if own.left_bias.any() or own.right_bias.any():
                linear = (back @ own.tensor.out) @ own.linear_factor().T
                passed = step.mlp_norm.back(linear, place)
                add_drift(ledger, layer, "mlp", step.mlp_norm, place, names, linear)
                readers.directions[place] = directions + passed
        found = dict(self._elements([site for site, _ in sites], threshold))
        for number, (site, names) in enumerate(sites):
            suffix = f".{names[0]}" if self.tree else ""
            self._choose(
                site, names, found.get(number), threshold, suffix, step.mlp_norm, ledger, readers
            )

    def _elements(self, sites: Sequence[Site], threshold: float) -> Iterator[tuple[int, Elements]]:
        """The elements of those sites that can have one above the threshold."""
        if not sites:
            return
        worth = self.basis.worth(sites, threshold)
        if worth:
            yield from zip(worth, self.basis.elements([sites[i] for i in worth]), strict=True)

    def _choose(
        self,
        site: Site,
        names: Sequence[str],
        elements: Elements | None,
        threshold: float,
        suffix: str,
        norm: NormStep,
        ledger: Ledger,
        readers: Readers,
    ) -> None:
        layer, place = site.layer, site.place
        rest = site.shares()
        if elements is not None:
            index = reaches(elements.shares, threshold).nonzero()[:, 0]
            if len(index):
                chosen = elements.choose(index)
                rest = rest - chosen.flows.sum(1)
                ids = [f"L{layer}.{place}.m{i}{suffix}" for i in index.tolist()]
                for k, id in enumerate(ids):
                    ledger.node(
                        id,
                        "mode",
                        f"L{layer}.m{int(index[k])} {chosen.labels[k]}",
                        2 * layer + 1,
                        index=int(index[k]),
                        details=chosen.details[k],
                        layer=layer,
                        position=place,
                    )
                    ledger.flow(id, names, chosen.flows[:, k])
                ledger.modes.update(zip(ids, chosen.modes, strict=False))
                if chosen.constants is not None:
                    add_bias(ledger, layer, "basis", ids, chosen.constants)
                add_drift(ledger, layer, "mlp", norm, place, ids, chosen.directions)
                readers.add(place, ids, norm.back(chosen.directions, place))
        id = f"L{layer}.{place}.rest"
        ledger.node(
            id, "remainder", f"rest of MLP {layer}", 2 * layer + 0.5, layer=layer, position=place
        )
        ledger.flow(id, names, rest)
