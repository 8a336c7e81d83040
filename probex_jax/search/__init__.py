"""Neighbours of models in representation space, and an index to search them."""

from probex_jax.search.baselines import Baselines, Compared, compare
from probex_jax.search.downstream import TASKS, Measured, Subject, measure, measure_all
from probex_jax.search.folders import FoundModel, find_models
from probex_jax.search.hits import AddSummary, Hit
from probex_jax.search.index import Index
from probex_jax.search.indexes import Indexes
from probex_jax.search.neighbours import (
    Retrieval,
    auc,
    knn,
    mahalanobis,
    one_class,
    retrieval,
)
from probex_jax.search.searching import Searchable
from probex_jax.search.snapshot import EVERY, Filter, Snapshot
from probex_jax.search.table import ModelTable
from probex_jax.search.verify import verify_index

__all__ = [
    "EVERY",
    "TASKS",
    "AddSummary",
    "Baselines",
    "Compared",
    "Filter",
    "FoundModel",
    "Hit",
    "Index",
    "Indexes",
    "Measured",
    "ModelTable",
    "Retrieval",
    "Searchable",
    "Snapshot",
    "Subject",
    "auc",
    "compare",
    "find_models",
    "knn",
    "mahalanobis",
    "measure",
    "measure_all",
    "one_class",
    "retrieval",
    "verify_index",
]
