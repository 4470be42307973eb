"""Ablation in the weights: what a hook does, written into the model for good.

- `ablate_(how="neurons")` adds neurons that subtract the modes: exact, and masking, since whoever
  finds the added neurons can delete them.
- `ablate_(how="refit")` fits the edited tensor with the original number of neurons, none of the old
  ones left: removal, with an error.
- `project_outputs_` and `project_inputs_` take whole directions out of W_out, or out of W_gate and
  W_in: exact, and removal; a larger edit than removing modes.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tl_bilinear.ablation.layer_edit import Scale, Texts, layer_edits
from tl_bilinear.ablation.mode_set import chosen_modes
from tl_bilinear.ablation.projection import layer_bases
from tl_bilinear.ablation.refit import refit
from tl_bilinear.ablation.wanted import without_inputs, without_modes, without_outputs
from tl_bilinear.ablation.weight_edit import Change, WeightEdit, write_
from tl_bilinear.decompositions import InputMode, Mode, OutputMode
from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.corpus import as_texts, hook_batches
from tl_bilinear.hosts.target import Target

How = Literal["neurons", "refit"]


def ablate_(
    model: Any,
    modes: Mode | Sequence[Mode],
    how: How = "neurons",
    *,
    scale: Scale = 0.0,
    texts: Texts | None = None,
    prompt: str | Tensor | None = None,
    target: Target | None = None,
    steps: int = 300,
) -> WeightEdit:
    """Scale modes in a model's weights, in place; what comes back says what it is and what it did.

    The same function as inside `ablate(model, modes, scale)`: to rounding with "neurons", up to
    `layers[i].error` with "refit". Weights are computed in float64 and stored in the model's dtype.

    Args:
        how: "neurons" adds one neuron per eigenvector, and zero neurons to every other layer, so
            that all have one width: exact, masking. "refit" keeps the width: removal, unless a
            mode was only scaled, or more than `INCOMPLETE` of the edit could not be made.
        scale: as for `ablate`; with "mean", `texts` are what the mean is taken over.
        texts: if given, the change is measured over them (KL), and a refit is near to the edited
            layer on what it reads there.
        prompt: with `target`, the direct effect foreseen under frozen norms and the real change.
        steps: of a refit, at most.

    Cost: "neurons" O(d_mlp d_model^2) per edited layer; "refit" O(d_mlp^2 d_model) per step.

    Raises:
        ValueError: as `ablate`; an eigenvector that reads what a norm's gain of zero hides from the
            MLP; a prompt without a target. The model is then as it was.
    """
    host, texts = get_host(model), None if texts is None else as_texts(texts)
    if how not in get_args(How):
        raise ValueError(f'`how` must be "neurons" or "refit", got {how!r}')
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"`steps` must be a whole number above 0, got {steps!r}")
    chosen = chosen_modes(host, modes)
    edits = layer_edits(host, chosen, scale, texts if scale == "mean" else None)
    wanted = {}
    for layer, edit in edits.items():
        dtype = _coarsest([mode.eigenvector for mode in chosen if mode.layer == layer])
        wanted[layer] = without_modes(host, layer, edit, dtype)
    if how == "neurons":
        change = Change(how, "masking", wanted, wanted)
        return write_(model, change, tuple(chosen), texts, prompt, target)
    moments = _moments(host, list(wanted), texts)
    fits = {
        layer: refit(host, layer, weights, *moments[layer], steps)
        for layer, weights in wanted.items()
    }
    kind = _kind(0.0 if isinstance(scale, str) else float(scale))
    change = Change(how, kind, wanted, {layer: fit.weights for layer, fit in fits.items()})
    return write_(model, change, tuple(chosen), texts, prompt, target)


def project_outputs_(
    model: Any,
    modes: OutputMode | Sequence[OutputMode],
    *,
    scale: float = 0.0,
    texts: Texts | None = None,
    prompt: str | Tensor | None = None,
    target: Target | None = None,
) -> WeightEdit:
    """`project_outputs` in the weights: W_out and b_out without some directions. Exact; removal.

    Args:
        texts, prompt, target: as for `ablate_`.

    Raises:
        ValueError: as `project_outputs`; the model is then as it was.
    """
    host = get_host(model)
    bases = layer_bases(host, modes, OutputMode, scale)
    wanted = {
        layer: without_outputs(host, layer, basis.mT @ basis, scale)
        for layer, basis in bases.items()
    }
    kept = (modes,) if isinstance(modes, OutputMode) else tuple(modes)
    change = Change("output projection", _kind(scale), wanted, wanted)
    return write_(model, change, kept, texts, prompt, target)


def project_inputs_(
    model: Any,
    modes: InputMode | Sequence[InputMode],
    *,
    scale: float = 0.0,
    texts: Texts | None = None,
    prompt: str | Tensor | None = None,
    target: Target | None = None,
) -> WeightEdit:
    """`project_inputs` in the weights: W_gate and W_in without some directions. Exact; removal.

    Args:
        texts, prompt, target: as for `ablate_`.

    Raises:
        ValueError: as `project_inputs`, and a direction that a norm's gain of zero hides from the
            MLP; the model is then as it was.
    """
    host = get_host(model)
    bases = layer_bases(host, modes, InputMode, scale)
    kept = (modes,) if isinstance(modes, InputMode) else tuple(modes)
    wanted = {}
    for layer, basis in bases.items():
        _ = host.mlp_map(layer)
        dtype = _coarsest([mode.direction for mode in kept if mode.layer == layer])
        wanted[layer] = without_inputs(host, layer, basis, scale, dtype)
    change = Change("input projection", _kind(scale), wanted, wanted)
    return write_(model, change, kept, texts, prompt, target)


def _kind(scale: float) -> Literal["masking", "removal"]:
    """A direction that is only scaled can be scaled back."""
    return "removal" if scale == 0 else "masking"


def _coarsest(vectors: Sequence[Tensor]) -> torch.dtype:
    return max((v.dtype for v in vectors), key=lambda dtype: torch.finfo(dtype).eps)


def _moments(
    host: AbstractHost, layers: Sequence[int], texts: Texts | None
) -> dict[int, tuple[Tensor, Tensor]]:
    """E[x x^T] and E[x] of what each layer reads; without texts those of unit covariance."""
    eye = torch.eye(host.d_model, dtype=torch.float64, device=host.device)
    if texts is None:
        return {layer: (eye, eye.new_zeros(len(eye))) for layer in layers}
    sums = {layer: (torch.zeros_like(eye), eye.new_zeros(len(eye))) for layer in layers}
    sites, tokens = {layer: host.mlp_input_site(layer) for layer in layers}, 0
    for values in hook_batches(host, texts, list(sites.values())):
        for layer, (moment, mean) in sums.items():
            x = values[sites[layer]]
            moment += x.mT @ x
            mean += x.sum(0)
        tokens += len(next(iter(values.values())))
    if not tokens:
        raise ValueError("the texts hold no token behind their first one")
    # A little of every direction, so that what the texts do not show stays near as well.
    floor = {layer: 1e-2 * m.diagonal().mean() / tokens * eye for layer, (m, _) in sums.items()}
    return {layer: (m / tokens + floor[layer], s / tokens) for layer, (m, s) in sums.items()}
