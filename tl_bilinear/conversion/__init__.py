"""Gated transformers made bilinear: anneal the gate, distil, fold (arXiv:2410.08417, app. J)."""

from tl_bilinear.conversion.annealing import (
    AnnealedGate,
    anneal_,
    fold_gate_,
    set_beta_,
)
from tl_bilinear.conversion.callback import AnnealGates, finish_folder
from tl_bilinear.conversion.distillation import (
    DistillationConfig,
    Losses,
    bilinearize,
    distillation_losses,
    windows,
)
from tl_bilinear.conversion.gates import GatedMLP, gate_activation, gated_mlps
from tl_bilinear.conversion.sampling import SampledStories, sample_batch, sample_stories
from tl_bilinear.conversion.schedules import SCHEDULES, beta_at

__all__ = [
    "AnnealGates",
    "AnnealedGate",
    "DistillationConfig",
    "GatedMLP",
    "Losses",
    "SCHEDULES",
    "SampledStories",
    "anneal_",
    "beta_at",
    "bilinearize",
    "distillation_losses",
    "finish_folder",
    "fold_gate_",
    "gate_activation",
    "gated_mlps",
    "sample_batch",
    "sample_stories",
    "set_beta_",
    "windows",
]
