"""The miniature zoo: Model Trees of small models, made here in minutes, and families of them."""

from probex_jax.zoo.miniature.build import TreeSummary, build, count
from probex_jax.zoo.miniature.data import CLASSES
from probex_jax.zoo.miniature.families import Families, build_families
from probex_jax.zoo.miniature.kinds import TREES
from probex_jax.zoo.miniature.planted import Planted
from probex_jax.zoo.miniature.settings import Lora, Settings, Variety
from probex_jax.zoo.miniature.vit import ViT

__all__ = [
    "CLASSES",
    "TREES",
    "Families",
    "Lora",
    "Planted",
    "Settings",
    "TreeSummary",
    "Variety",
    "ViT",
    "build",
    "build_families",
    "count",
]
