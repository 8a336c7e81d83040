"""Fitting networks to arrays: matrices and targets in, parameters out; no store, path or expert."""

from probex_jax.fitting.calibration import calibration_error, reliability
from probex_jax.fitting.closed_form import ClosedForm, fit_closed_form
from probex_jax.fitting.data import Split
from probex_jax.fitting.fit import Fit, fit
from probex_jax.fitting.metrics import Score, auc_score, macro_auc, mean_score, share
from probex_jax.fitting.network import ENCODERS, Network, build_network
from probex_jax.fitting.number import Number
from probex_jax.fitting.recipe import Adam
from probex_jax.fitting.sharding import Devices
from probex_jax.fitting.task import OneClass, SeveralClasses, Task
from probex_jax.fitting.texts import Texts

_OURS: list[type[Task]] = [SeveralClasses, OneClass, Texts, Number]
# Tasks by their names on cards.
TASKS = {task.name: task for task in _OURS}

__all__ = [
    "ENCODERS",
    "TASKS",
    "Adam",
    "ClosedForm",
    "Devices",
    "Fit",
    "Network",
    "Number",
    "OneClass",
    "Score",
    "SeveralClasses",
    "Split",
    "Task",
    "Texts",
    "auc_score",
    "build_network",
    "calibration_error",
    "fit",
    "fit_closed_form",
    "macro_auc",
    "mean_score",
    "reliability",
    "share",
]
