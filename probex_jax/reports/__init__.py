"""What people look at: tables, figures, maps, model cards and reports."""

from probex_jax.reports.card import model_card
from probex_jax.reports.family_tree import family_tree_html
from probex_jax.reports.family_tree_text import mermaid, newick
from probex_jax.reports.figures import accuracy_by_layer
from probex_jax.reports.html import escaped, page
from probex_jax.reports.interactive_map import MapPoint, interactive_map
from probex_jax.reports.map_layout import layout_2d, position_among
from probex_jax.reports.predictions import LabelledDescription
from probex_jax.reports.report import Cost, Run, report
from probex_jax.reports.tables import table
from probex_jax.reports.training import Training

__all__ = [
    "Cost",
    "LabelledDescription",
    "MapPoint",
    "Run",
    "Training",
    "accuracy_by_layer",
    "escaped",
    "family_tree_html",
    "interactive_map",
    "layout_2d",
    "mermaid",
    "model_card",
    "newick",
    "page",
    "position_among",
    "report",
    "table",
]
