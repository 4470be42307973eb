"""The report: one page on one prompt, from the model's self-check to an ablation."""

from tl_bilinear.report.measure import LayerReport as LayerReport
from tl_bilinear.report.measure import ModeReport as ModeReport
from tl_bilinear.report.measure import Prediction as Prediction
from tl_bilinear.report.measure import Report as Report
from tl_bilinear.report.measure import measure_report as measure_report
from tl_bilinear.report.page import report_page as report_page
from tl_bilinear.report.question import DEFAULT_AGAINST as DEFAULT_AGAINST
from tl_bilinear.report.question import DEFAULT_PROMPT as DEFAULT_PROMPT
from tl_bilinear.report.question import DEFAULT_TARGET as DEFAULT_TARGET
from tl_bilinear.report.write import write_report as write_report
