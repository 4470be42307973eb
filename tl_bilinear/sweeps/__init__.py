"""Sweeps: one computation over layers and thousands of output directions, resumable."""

from tl_bilinear.sweeps.computation import AbstractComputation as AbstractComputation
from tl_bilinear.sweeps.computations import computations as computations
from tl_bilinear.sweeps.directions import Directions as Directions
from tl_bilinear.sweeps.directions import file_directions as file_directions
from tl_bilinear.sweeps.directions import output_basis as output_basis
from tl_bilinear.sweeps.directions import target_directions as target_directions
from tl_bilinear.sweeps.directions import token_directions as token_directions
from tl_bilinear.sweeps.error import SweepError as SweepError
from tl_bilinear.sweeps.result import Sweep as Sweep
from tl_bilinear.sweeps.run import run_sweep as run_sweep
