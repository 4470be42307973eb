"""Ablation of modes, by hook and in the weights, and its matched random control."""

from tl_bilinear.ablation.control import matched_random_modes as matched_random_modes
from tl_bilinear.ablation.control import rms_contribution as rms_contribution
from tl_bilinear.ablation.effect import AblationEffect as AblationEffect
from tl_bilinear.ablation.effect import measure_ablation as measure_ablation
from tl_bilinear.ablation.hook import ablate as ablate
from tl_bilinear.ablation.ledger import Ledger as Ledger
from tl_bilinear.ablation.ledger import undo_ as undo_
from tl_bilinear.ablation.mode_set import ModeSet as ModeSet
from tl_bilinear.ablation.mode_set import load_modes as load_modes
from tl_bilinear.ablation.mode_set import save_modes as save_modes
from tl_bilinear.ablation.projection import project_inputs as project_inputs
from tl_bilinear.ablation.projection import project_outputs as project_outputs
from tl_bilinear.ablation.weight_edit import WeightEdit as WeightEdit
from tl_bilinear.ablation.weights import ablate_ as ablate_
from tl_bilinear.ablation.weights import project_inputs_ as project_inputs_
from tl_bilinear.ablation.weights import project_outputs_ as project_outputs_
