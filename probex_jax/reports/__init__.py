"""What people look at: tables, figures, and described models."""

from probex_jax.reports.card import model_card
from probex_jax.reports.figures import accuracy_by_layer
from probex_jax.reports.hidden import HiddenModel, hidden_models
from probex_jax.reports.html import escaped, page
from probex_jax.reports.interactive_map import MapPoint, interactive_map
from probex_jax.reports.layout import in_the_plane, placed_beside
from probex_jax.reports.maps import map_of_models
from probex_jax.reports.report import Cost, Run, report
from probex_jax.reports.tables import table
from probex_jax.reports.training import Training

__all__ = [
    "Cost",
    "HiddenModel",
    "MapPoint",
    "Run",
    "Training",
    "accuracy_by_layer",
    "escaped",
    "hidden_models",
    "in_the_plane",
    "interactive_map",
    "map_of_models",
    "model_card",
    "page",
    "placed_beside",
    "report",
    "table",
]
