"""What a model knows: each metric as open-unlearning (locuslab, 2506.12618) defines it in code."""

from tl_bilinear.unlearning.metrics.answers import AnswerScores as AnswerScores
from tl_bilinear.unlearning.metrics.answers import RowScores as RowScores
from tl_bilinear.unlearning.metrics.answers import mean_scores as mean_scores
from tl_bilinear.unlearning.metrics.answers import score_rows as score_rows
from tl_bilinear.unlearning.metrics.divergence import TextScores as TextScores
from tl_bilinear.unlearning.metrics.divergence import score_texts as score_texts
from tl_bilinear.unlearning.metrics.forget_quality import forget_quality as forget_quality
from tl_bilinear.unlearning.metrics.forget_quality import kolmogorov_smirnov as kolmogorov_smirnov
from tl_bilinear.unlearning.metrics.truth_ratio import forget_truth_ratio as forget_truth_ratio
from tl_bilinear.unlearning.metrics.truth_ratio import retain_truth_ratio as retain_truth_ratio
from tl_bilinear.unlearning.metrics.truth_ratio import truth_ratios as truth_ratios
