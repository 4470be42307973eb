"""What ablating a mode does to a target, beside matched random modes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tl_bilinear.ablation.control import matched_random_modes, rms_contribution, two_sided_rank
from tl_bilinear.ablation.hook import ablate
from tl_bilinear.decompositions import Mode
from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.corpus import mlp_streams
from tl_bilinear.hosts.prompts import one_prompt, token_names
from tl_bilinear.hosts.reading import Reading, read_ends, target_values
from tl_bilinear.hosts.target import Target, make_readouts
from tl_bilinear.hosts.writing import mlp_writing, writing_hooks


@dataclass(frozen=True, eq=False)
class AblationEffect:
    """Target values in logits, summed over the target's sites, for one prompt."""

    mode: Mode
    sites: tuple[str, ...]
    before: float
    after: float
    """The mode's layer without the mode, at every position; nothing frozen."""
    direct: float
    """Change foreseen at the last position alone, with the norms frozen."""
    controls: tuple[float, ...]
    """Target values with a matched random mode ablated instead."""
    rms: float
    """Root-mean-square contribution that mode and controls share, over the texts."""
    tokens: int
    """Tokens that `rms` was taken over."""
    seed: int
    probabilities: tuple[tuple[str, float, float], ...]
    """(token, before, after) for each token of the target."""

    @property
    def change(self) -> float:
        return self.after - self.before

    @property
    def control_changes(self) -> tuple[float, ...]:
        return tuple(control - self.before for control in self.controls)

    @property
    def controls_as_large(self) -> int:
        """How many controls change the target at least as much, either way."""
        return two_sided_rank(self.change, self.control_changes)


def measure_ablation(
    model: Any,
    text: str,
    target: Target,
    mode: Mode,
    texts: Sequence[str],
    *,
    draws: int = 20,
    seed: int = 0,
) -> AblationEffect:
    """Ablate a mode at every position of one prompt, then each of its matched random modes.

    Args:
        texts: the corpus over which root-mean-square contributions are matched.
        draws: number of random modes.
        seed: of the random modes.

    Cost: `draws` + 2 forward passes of the prompt and one of the corpus.

    Raises:
        ValueError: as `attribute_modes` and `ablate`, and for texts without tokens.
    """
    host = get_host(model)
    tokens = [one_prompt(host, text)]
    readouts = make_readouts(host, target, [text])

    def run() -> Reading:
        hooks = [host.mlp_input_site(mode.layer), *writing_hooks(host, mode.layer)]
        return read_ends(host, tokens, readouts, hooks)

    before = run()
    with ablate(host, mode):
        after = run()
    streams = mlp_streams(host, mode.layer, texts)
    controls = []
    for control in matched_random_modes(mode, streams, draws, seed):
        with ablate(host, control):
            controls.append(float(target_values(host, run()).sum()))
    return AblationEffect(
        mode=mode,
        sites=before.labels(),
        before=float(target_values(host, before).sum()),
        after=float(target_values(host, after).sum()),
        direct=_direct(host, mode, before),
        controls=tuple(controls),
        rms=rms_contribution(mode, streams),
        tokens=streams.shape[0],
        seed=seed,
        probabilities=_probabilities(host, before, after),
    )


def _direct(host: AbstractHost, mode: Mode, reading: Reading) -> float:
    x = reading.values[host.mlp_input_site(mode.layer)][0]
    lost = mode.contributions(x)
    writing = mlp_writing(host, reading, mode.layer)
    direction = mode.direction.to(writing.direction)
    along = writing.direction @ direction / direction.square().sum()
    return float(-(along * lost / writing.scale[0]).sum())


def _probabilities(
    host: AbstractHost, before: Reading, after: Reading
) -> tuple[tuple[str, float, float], ...]:
    rows = []
    for site, readout in enumerate(before.readouts):
        first = before.logits[0, site].softmax(-1)
        second = after.logits[0, site].softmax(-1)
        for token in readout.weights:
            name = token_names(host, torch.tensor([token]))[0]
            rows.append((name, float(first[token]), float(second[token])))
    return tuple(rows)
