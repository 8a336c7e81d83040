"""Collections of models of one tree: folders with labels and splits, Model-J, the miniature zoo."""

from probex_jax.zoo.label_files import Labels, read_labels
from probex_jax.zoo.model_j import SPLITS, Zoo, ZooModel, scan
from probex_jax.zoo.splitting import make_split
from probex_jax.zoo.tables import Names, Tables, read_splits

__all__ = [
    "SPLITS",
    "Labels",
    "Names",
    "Tables",
    "Zoo",
    "ZooModel",
    "make_split",
    "read_labels",
    "read_splits",
    "scan",
]
