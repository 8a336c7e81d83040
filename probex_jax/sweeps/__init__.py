"""Sweeps: from a store and a work directory to experts, layer by layer, resumable."""

from probex_jax.sweeps.joint import attribute_views
from probex_jax.sweeps.settings import default_layers
from probex_jax.sweeps.statnn import run_statnn
from probex_jax.sweeps.stopping import Stop
from probex_jax.sweeps.sweep import SweepResult, sweep, sweep_attributes

__all__ = [
    "Stop",
    "SweepResult",
    "attribute_views",
    "default_layers",
    "run_statnn",
    "sweep",
    "sweep_attributes",
]
