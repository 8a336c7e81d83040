"""From a model file that nobody described to what it is: its tree, and what it was trained on.

`discover` finds the trees among anyone's models; `grow` makes a forest of known trees with their
experts; `Forest.describe` tells a model's tree (`router`) and what the tree's expert says of it.
"""

from probex_jax.forest.description import Comparison, Description, Neighbour, Prediction
from probex_jax.forest.discovery import Discovery, FoundTree, discover
from probex_jax.forest.forest import Forest, Nearest, Tree
from probex_jax.forest.growing import grow
from probex_jax.forest.router import Route, TreeRouter, route

__all__ = [
    "Comparison",
    "Description",
    "Discovery",
    "Forest",
    "FoundTree",
    "Nearest",
    "Neighbour",
    "Prediction",
    "Route",
    "Tree",
    "TreeRouter",
    "discover",
    "grow",
    "route",
]
