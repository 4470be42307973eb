"""Forgetting: what a model knows, which edit makes it forget, and what is left."""

from tl_bilinear.unlearning.answer_rows import AnswerRows as AnswerRows
from tl_bilinear.unlearning.answer_rows import accuracy as accuracy
from tl_bilinear.unlearning.answer_rows import answer_rows as answer_rows
from tl_bilinear.unlearning.answer_rows import known_rows as known_rows
from tl_bilinear.unlearning.answer_rows import site_logits as site_logits
from tl_bilinear.unlearning.answer_rows import site_margins as site_margins
from tl_bilinear.unlearning.question import Question as Question
