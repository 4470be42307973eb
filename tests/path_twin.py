"""A trace by brute force: every path from the target to a source, one scalar product at a time.

Loops over hidden units, heads and positions, with the equal split at each product of two factors;
no eigenvectors, no accumulated directions, nothing shared with the package but the model's own
activations from TransformerLens' cache. For models of a few numbers.
"""

from collections import defaultdict
from typing import Any

import torch

Values = dict[str, list[torch.Tensor]]


class PathTwin:
    """Shares of every source in w . stream, for one run (frozen) or the difference of two."""

    def __init__(self, model: Any, prompts: list[torch.Tensor]):
        self.model, self.n = model, len(prompts[0])
        runs = [model.run_with_cache(prompt[None])[1] for prompt in prompts]
        self.runs = [{name: value[0].detach() for name, value in run.items()} for run in runs]
        self.contrast = len(prompts) == 2

    def both(self, of) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean, end): the value twice, or the mean and the difference of two runs."""
        values = [of(run) for run in self.runs]
        if not self.contrast:
            return values[0], values[0]
        return (values[0] + values[1]) / 2, values[0] - values[1]

    def trace(self, w: torch.Tensor, place: int) -> dict[str, float]:
        """From a direction behind the final norm, which has neither gain nor bias."""
        self.found: dict[str, float] = defaultdict(float)
        norm, last = "ln_final", self.model.cfg.n_layers
        self.normed(w, place, norm, last, "stream")
        return dict(self.found)

    def normed(self, w, place: int, norm: str, layer: int, what: str) -> None:
        """w . (m / rho): the stream's part, and in a contrast the denominator's."""
        inverse, change = self.both(lambda run: 1 / run[f"{norm}.hook_scale"][place, 0])
        if self.contrast:
            mean, _ = self.both(
                lambda run: run[f"{norm}.hook_scale"][place] * run[f"{norm}.hook_normalized"][place]
            )
            self.found["norms"] += float(change * (w @ mean))
        if what == "mid":
            self.mid(w * inverse, place, layer)
        else:
            self.stream(w * inverse, place, layer)

    def stream(self, w, place: int, layer: int) -> None:
        """w . (the stream before a layer)."""
        if layer == 0:
            _, end = self.both(lambda run: run["hook_embed"][place])
            self.found[f"token {place}"] += float(w @ end)
            if not self.contrast and "hook_pos_embed" in self.runs[0]:
                self.found["positions"] += float(w @ self.runs[0]["hook_pos_embed"][place])
            return
        layer -= 1
        mlp = self.model.blocks[layer].mlp
        for unit in range(mlp.W_in.shape[1]):
            weight = w @ mlp.W_out[unit]
            ways = (mlp.W_gate[:, unit], mlp.W_in[:, unit])
            inputs = f"blocks.{layer}.ln2.hook_normalized"
            for way, other in (ways, ways[::-1]):
                mean, _ = self.both(lambda run, o=other, i=inputs: run[i][place] @ o)
                # half of the product; of a difference, mean(X) dY
                half = 1.0 if self.contrast else 0.5
                self.normed(half * weight * mean * way, place, f"blocks.{layer}.ln2", layer, "mid")
        self.mid(w, place, layer)

    def mid(self, w, place: int, layer: int) -> None:
        """w . (the stream between a layer's attention and its MLP)."""
        attention = self.model.blocks[layer].attn
        site = f"blocks.{layer}.attn.hook_pattern"
        inputs = f"blocks.{layer}.ln1.hook_normalized"
        for head in range(self.model.cfg.n_heads):
            way = attention.W_V[head] @ attention.W_O[head] @ w
            for source in range(self.n):
                pattern, change = self.both(lambda run, h=head, s=source: run[site][h, place, s])
                if self.contrast:
                    mean, _ = self.both(lambda run, s=source, way=way: run[inputs][s] @ way)
                    self.found["patterns"] += float(change * mean)
                if pattern:
                    self.normed(pattern * way, source, f"blocks.{layer}.ln1", layer, "stream")
        self.stream(w, place, layer)
