"""Conversion inside the user's own `transformers.Trainer`, on any number of machines.

    trainer = Trainer(model, ..., callbacks=[AnnealGates(fraction=0.3)])
    trainer.train()
    trainer.save_model("bilinear")

The gates are swapped when the Trainer is made, before there is an optimizer; beta follows the
Trainer's own step, so that a resumed run goes on where it was. Under DDP the factor is folded at
the end of training. Where weights are sharded (FSDP, DeepSpeed ZeRO 3) it is not, with a warning:
save, and finish on one process with `finish_folder("trained", "bilinear")`.

Checkpoints on the way say `gate_beta` in their config.json: their `hidden_act` is still the old
one, and the gate is neither that nor linear.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    TrainerCallback,
)

from tl_bilinear.conversion.annealing import AnnealedGate, anneal_, fold_gate_, set_beta_
from tl_bilinear.conversion.gates import gated_mlps
from tl_bilinear.conversion.schedules import beta_at
from tl_bilinear.optimisation.files import whole_folder

BETA_KEY = "gate_beta"
_SCALE = ".scale"


class AnnealGates(TrainerCallback):
    """Anneals the gates of the model that a Trainer trains, and folds them at the end."""

    def __init__(
        self,
        *,
        fraction: float = 0.3,
        schedule: str = "linear",
        learned_scale: bool = False,
        fold: bool = True,
    ):
        """
        Args:
            fraction: the share of the Trainer's steps over which beta falls.
            schedule: how it falls, a name of `SCHEDULES`.
            learned_scale: train a factor for every neuron's gate.
            fold: fold at the end of training; sharded weights are left, as with False.

        Raises:
            ValueError: a fraction outside (0, 1], an unknown schedule.
        """
        beta_at(0, 1, fraction, schedule)
        self.fraction, self.schedule = fraction, schedule
        self.learned_scale, self.fold = learned_scale, fold

    def on_init_end(self, args, state, control, model=None, **kwargs):
        """Swap the gates in: the optimizer that is made next trains their scales too.

        Raises:
            ValueError: a model that cannot be annealed.
        """
        assert isinstance(model, PreTrainedModel), "the Trainer gives its own model"
        if not _annealed(model):
            anneal_(model, learned_scale=self.learned_scale)
        setattr(model.config, BETA_KEY, 1.0)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Raise ValueError where the callback was added behind the Trainer's making."""
        if model is None or not _annealed(model):
            raise ValueError(
                "AnnealGates was added to a Trainer that was made already: give it in "
                "Trainer(..., callbacks=[AnnealGates()]), so that the gates are swapped before the "
                "optimizer is made."
            )

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        """Set beta for the step that follows."""
        self._set(model, beta_at(state.global_step, state.max_steps, self.fraction, self.schedule))

    def on_log(self, args, state, control, model=None, logs=None, **kwargs):
        """Name the beta of the last step beside its losses."""
        beta = getattr(model.config, BETA_KEY, 0.0) if model is not None else None
        for entry in (logs, state.log_history[-1] if state.log_history else None):
            if entry is not None and beta is not None:
                entry[BETA_KEY] = beta

    def on_train_end(self, args, state, control, model=None, **kwargs):
        """Fold, where all steps were done: a run that was stopped early is not linear yet."""
        if model is None or state.global_step < state.max_steps:
            return
        self._set(model, 0.0)
        if self.fold and _is_sharded(model):
            warnings.warn(
                "the weights are sharded, so the gate's factor was not folded: save the model, and "
                "make it bilinear with tl_bilinear.conversion.finish_folder(saved, target)",
                stacklevel=2,
            )
        elif self.fold:
            fold_gate_(model)
            delattr(model.config, BETA_KEY)

    def _set(self, model: Any, beta: float) -> None:
        set_beta_(model, beta)
        setattr(model.config, BETA_KEY, beta)


def finish_folder(source: str | Path, target: str | Path) -> Path:
    """Fold a conversion that was trained to beta 0 and saved unfolded; write it to `target`.

    Raises:
        ValueError: a folder that is no such conversion, or one whose beta is not 0 yet.
    """
    source, target = Path(source), Path(target)
    if not (source / "config.json").is_file():
        raise ValueError(f"{source} is not a model folder: expected a config.json in it.")
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{target} is not empty: give a new folder.")
    model = AutoModelForCausalLM.from_pretrained(source, local_files_only=True)
    beta = getattr(model.config, BETA_KEY, None)
    if beta != 0:
        raise ValueError(
            f"the config.json of {source} has {BETA_KEY} {beta}: only a conversion that was "
            "trained to the end by AnnealGates, at 0, can be folded."
        )
    scales = _scales(source)
    anneal_(model, 0.0, learned_scale=bool(scales))
    for index, mlp in enumerate(gated_mlps(model)):
        gate = mlp.activation
        if scales and isinstance(gate, AnnealedGate) and gate.scale is not None:
            with torch.no_grad():
                gate.scale.copy_(scales[index])
    fold_gate_(model)
    delattr(model.config, BETA_KEY)
    with whole_folder(target) as temporary:
        model.save_pretrained(temporary)
        if (source / "tokenizer_config.json").exists():
            AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(temporary)
    return target


def _scales(folder: Path) -> list[torch.Tensor]:
    """The learned scales of a folder, in layer order."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.endswith(_SCALE)]  # noqa: SIM118
            found |= {name: file.get_tensor(name) for name in names}
    layer = {name: [int(part) for part in name.split(".") if part.isdigit()] for name in found}
    return [found[name] for name in sorted(found, key=lambda name: layer[name])]


def _is_sharded(model: nn.Module) -> bool:
    """Whether a process holds parts of the weights: DeepSpeed ZeRO 3, FSDP 2 or FSDP 1."""
    if any(hasattr(each, "ds_id") or hasattr(each, "to_local") for each in model.parameters()):
        return True
    return any(type(each).__name__ == "FullyShardedDataParallel" for each in model.modules())


def _annealed(model: nn.Module) -> bool:
    return any(isinstance(module, AnnealedGate) for module in model.modules())
