"""Gated transformers made bilinear: anneal the gate, distil, fold (arXiv:2410.08417, app. J)."""

from tl_bilinear.conversion.annealing import (
    AnnealedGate,
    anneal_,
    cosine_schedule,
    fold_gate_,
    gate_activation,
    gated_mlps,
    linear_schedule,
    set_beta_,
)
from tl_bilinear.conversion.distillation import (
    DistillationConfig,
    Losses,
    bilinearize,
    distillation_losses,
    windows,
)
from tl_bilinear.conversion.sampling import SampledStories, sample_batch, sample_stories

__all__ = [
    "AnnealedGate",
    "DistillationConfig",
    "Losses",
    "SampledStories",
    "anneal_",
    "bilinearize",
    "cosine_schedule",
    "distillation_losses",
    "fold_gate_",
    "gate_activation",
    "gated_mlps",
    "linear_schedule",
    "sample_batch",
    "sample_stories",
    "set_beta_",
    "windows",
]
