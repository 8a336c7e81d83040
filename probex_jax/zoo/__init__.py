"""Collections of models of one tree: Model-J's layout, downloads, and the miniature zoo."""

from probex_jax.zoo.model_j import SPLITS, Zoo, ZooModel, scan

__all__ = ["SPLITS", "Zoo", "ZooModel", "scan"]
