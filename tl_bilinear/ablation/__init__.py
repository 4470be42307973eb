"""Ablation of modes by hook, and its matched random control."""

from tl_bilinear.ablation.control import matched_random_modes as matched_random_modes
from tl_bilinear.ablation.control import rms_contribution as rms_contribution
from tl_bilinear.ablation.effect import AblationEffect as AblationEffect
from tl_bilinear.ablation.effect import measure_ablation as measure_ablation
from tl_bilinear.ablation.hook import ablate as ablate
