"""Unlearning: finding, fitting and measuring edits that take something out of a model."""

from tl_bilinear.unlearning.answer_rows import AnswerRows as AnswerRows
from tl_bilinear.unlearning.answer_rows import accuracy as accuracy
from tl_bilinear.unlearning.answer_rows import answer_rows as answer_rows
from tl_bilinear.unlearning.answer_rows import known_rows as known_rows
from tl_bilinear.unlearning.answer_rows import site_logits as site_logits
from tl_bilinear.unlearning.answer_rows import site_margins as site_margins
from tl_bilinear.unlearning.contrast import ContrastiveDirections as ContrastiveDirections
from tl_bilinear.unlearning.contrast import contrastive_directions as contrastive_directions
from tl_bilinear.unlearning.contrast import moment_overlap as moment_overlap
from tl_bilinear.unlearning.contrast import second_moment as second_moment
from tl_bilinear.unlearning.probes import Probe as Probe
from tl_bilinear.unlearning.probes import held_out_examples as held_out_examples
from tl_bilinear.unlearning.probes import ridge_probe as ridge_probe
from tl_bilinear.unlearning.question import Question as Question
from tl_bilinear.unlearning.question_file import load_questions as load_questions
from tl_bilinear.unlearning.question_file import save_questions as save_questions
from tl_bilinear.unlearning.relearning import RelearningConfig as RelearningConfig
from tl_bilinear.unlearning.report import UnlearningReport as UnlearningReport
from tl_bilinear.unlearning.unlearn import unlearn as unlearn
