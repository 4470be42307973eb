"""Unlearning: finding, fitting and measuring edits that take something out of a model."""

from tl_bilinear.unlearning.contrast import ContrastiveDirections as ContrastiveDirections
from tl_bilinear.unlearning.contrast import contrastive_directions as contrastive_directions
from tl_bilinear.unlearning.contrast import moment_overlap as moment_overlap
from tl_bilinear.unlearning.contrast import second_moment as second_moment
from tl_bilinear.unlearning.probes import Probe as Probe
from tl_bilinear.unlearning.probes import held_out_examples as held_out_examples
from tl_bilinear.unlearning.probes import ridge_probe as ridge_probe
