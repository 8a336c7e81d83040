"""The miniature zoo: Model Trees of small models, fine-tuned here in minutes, and planted ones."""

from probex_jax.zoo.miniature.build import TreeSummary, build, count
from probex_jax.zoo.miniature.data import CLASSES
from probex_jax.zoo.miniature.kinds import TREES
from probex_jax.zoo.miniature.planted import Planted
from probex_jax.zoo.miniature.settings import Lora, Settings
from probex_jax.zoo.miniature.vit import ViT

__all__ = [
    "CLASSES",
    "TREES",
    "Lora",
    "Planted",
    "Settings",
    "TreeSummary",
    "ViT",
    "build",
    "count",
]
