"""The miniature zoo: Model Trees of really fine-tuned small models, built in minutes."""

from probex_jax.zoo.miniature.build import TreeSummary, build
from probex_jax.zoo.miniature.data import CLASSES
from probex_jax.zoo.miniature.settings import TREES, Settings

__all__ = ["CLASSES", "TREES", "Settings", "TreeSummary", "build"]
