"""What training and conversion share: resumable runs, learning rates, batches, whole files."""

from tl_bilinear.optimisation.batches import ShuffledBatches as ShuffledBatches
from tl_bilinear.optimisation.batches import TokenWindows as TokenWindows
from tl_bilinear.optimisation.run import TrainingRun as TrainingRun
from tl_bilinear.optimisation.schedule import Decay as Decay
from tl_bilinear.optimisation.schedule import learning_rate as learning_rate
