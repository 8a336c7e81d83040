"""What people look at: tables, figures, and described models."""

from probex_jax.reports.card import model_card
from probex_jax.reports.figures import accuracy_by_layer
from probex_jax.reports.hidden import HiddenModel, hidden_models
from probex_jax.reports.maps import map_of_models
from probex_jax.reports.tables import table

__all__ = [
    "HiddenModel",
    "accuracy_by_layer",
    "hidden_models",
    "map_of_models",
    "model_card",
    "table",
]
