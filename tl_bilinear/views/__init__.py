"""Views: pictures and pages of results. They need `pip install 'tl_bilinear[views]'`."""

from tl_bilinear.views.ablation import ablation_figure as ablation_figure
from tl_bilinear.views.circuit_figure import circuit_figure as circuit_figure
from tl_bilinear.views.circuit_figure import save_figure as save_figure
from tl_bilinear.views.circuit_page import circuit_page as circuit_page
from tl_bilinear.views.contributions import Contributions as Contributions
from tl_bilinear.views.contributions import contribution_figure as contribution_figure
from tl_bilinear.views.contributions import contribution_table as contribution_table
from tl_bilinear.views.extra import require_views as require_views
from tl_bilinear.views.figure import figure_svg as figure_svg
from tl_bilinear.views.intervals import interval_figure as interval_figure
from tl_bilinear.views.page import Page as Page
from tl_bilinear.views.pictures import eigenvector_figure as eigenvector_figure
from tl_bilinear.views.spectrum import spectrum_figure as spectrum_figure
from tl_bilinear.views.table import Markup as Markup
from tl_bilinear.views.table import table as table
from tl_bilinear.views.tokens import colored_tokens as colored_tokens
