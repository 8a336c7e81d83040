"""The miniature zoo: Model Trees of small models, fine-tuned here in minutes."""

from probex_jax.zoo.miniature.build import TreeSummary, build, count
from probex_jax.zoo.miniature.data import CLASSES
from probex_jax.zoo.miniature.kinds import TREES
from probex_jax.zoo.miniature.settings import Lora, Settings
from probex_jax.zoo.miniature.vit import ViT

__all__ = ["CLASSES", "TREES", "Lora", "Settings", "TreeSummary", "ViT", "build", "count"]
