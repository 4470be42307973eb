"""Models of arithmetic modulo a prime that differ in their seed alone, trained as one.

Each parameter is a stack over seeds, and the loss is the sum of theirs: without clipping each model
takes the steps that it takes alone, up to rounding. All pairs are embedded as sums of two rows, and
the first layer reads those rows before they are added.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from tl_bilinear.optimisation.files import fingerprint_settings
from tl_bilinear.recipes.modular import NAME, ModularRecipe, ModularRun, measured
from tl_bilinear.recipes.toy_runs import seconds_of
from tl_bilinear.toys import ModularModel, ModularTask
from tl_bilinear.toys.mlp import activated
from tl_bilinear.training import train


class ModularStack(nn.Module):
    """Several ModularModels of one configuration; every parameter is [model, ...].

    Args:
        models: whose weights are copied.

    Raises:
        ValueError: none, or different configurations.
    """

    def __init__(self, models: Sequence[ModularModel]):
        super().__init__()
        if len({model.config for model in models}) != 1:
            raise ValueError("models of one configuration are stacked: give one or more of them")
        self.config = models[0].config
        self.names = [name for name, _ in models[0].named_parameters()]
        named = [dict(model.named_parameters()) for model in models]
        self.stacks = nn.ParameterDict(
            {
                _key(name): torch.stack([each[name].detach() for each in named])
                for name in self.names
            }
        )

    def forward(self) -> Float[Tensor, "model operation pair answer"]:
        """Logits of all p^2 pairs, in the order of `ModularTask.pairs`."""
        c, weights = self.config, {name: self.stacks[_key(name)] for name in self.names}
        parts = [weights["W_a"], weights["W_b"], weights["W_task"]]
        tokens = c.form == "token"
        stream = _all_pairs(parts, tokens)
        for layer in range(c.n_layers):
            reads = []
            for name in ("W_gate", "W_in"):
                matrix = weights.get(f"mlps.{layer}.{name}")
                if matrix is None:
                    reads.append(None)
                elif layer == 0:
                    reads.append(_all_pairs([part @ matrix for part in parts], tokens))
                else:
                    reads.append(stream @ matrix)
            hidden = activated(c.activation, *reads)
            output = hidden @ weights[f"mlps.{layer}.W_out"]
            stream = stream + output if tokens else output
        logits = stream @ weights["W_U"]
        if tokens:
            return logits.unflatten(1, (c.n_operations, c.p**2))
        return logits.unflatten(-1, (c.n_operations, c.p)).transpose(1, 2)

    @torch.no_grad()
    def model(self, index: int) -> ModularModel:
        """One of the models, in eval mode."""
        model = ModularModel(self.config)
        for name, parameter in model.named_parameters():
            parameter.copy_(self.stacks[_key(name)][index])
        return model.eval()


class StackedPairs:
    """The same batch at every step: targets, and which of them each model is trained on."""

    def __init__(self, tasks: Sequence[ModularTask]):
        self.tasks = tuple(tasks)
        self.targets = tasks[0].targets.expand(len(tasks), -1, -1)
        self.trained = torch.stack([task.trained for task in tasks])

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        return self.targets, self.trained

    def fingerprint(self) -> str:
        return repr(self.tasks)


def summed_loss(stack: ModularStack, batch: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
    """The sum over models of their mean cross-entropy over their own training pairs, in nats."""
    targets, trained = batch
    losses = functional.cross_entropy(
        stack().flatten(0, 2), targets.flatten(), reduction="none"
    ).view(targets.shape)
    counts = trained.sum((1, 2))
    return ((losses * trained).sum((1, 2)) / counts).sum()


def train_stack(
    recipes: Sequence[ModularRecipe], work_dir: Path
) -> tuple[tuple[ModularModel, ModularRun], ...]:
    """Train recipes that differ in their seed alone; the run is kept in `work_dir` and resumed.

    Raises:
        ValueError: recipes that differ in more, or that clip the gradient, whose norm would be that
            of all models.
    """
    first = recipes[0]
    alike = {(r.model, r.training, replace(r.task, seed=0)) for r in recipes}
    if len(alike) != 1 or first.training.clip_norm is not None:
        raise ValueError(
            "recipes that differ in their seed alone and do not clip the gradient are stacked"
        )
    stack = ModularStack([ModularModel(each.model, seed=each.seed) for each in recipes])
    folder = work_dir / f"{NAME}-stack-{first.name}-{fingerprint_settings(tuple(recipes))}"
    train(
        stack,
        StackedPairs([each.task for each in recipes]),
        first.training,
        loss=summed_loss,
        out_folder=folder,
        checkpoint_every=500,
        progress=False,
    )
    seconds = seconds_of(folder) / len(recipes)
    models = [stack.model(index) for index in range(len(recipes))]
    return tuple((m, measured(r, m, seconds)) for r, m in zip(recipes, models, strict=True))


def _all_pairs(parts: Sequence[Tensor], tokens: bool) -> Tensor:
    """[model, task * pair, d] from rows of the first number, the second, and the task."""
    a, b, task = parts
    pairs = (a[:, :, None] + b[:, None, :]).flatten(1, 2)
    return (pairs[:, None] + task[:, :, None]).flatten(1, 2) if tokens else pairs


def _key(name: str) -> str:
    return name.replace(".", "_")
