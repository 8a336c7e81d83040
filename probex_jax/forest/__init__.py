"""Model Trees: discovering them, and describing models by their tree and its expert.

`discover` finds the trees among models of unknown origin; `grow` makes a forest of known trees with
their experts; `Forest.describe` finds the tree of a model (`router`) and predicts what it was
trained on.
"""

from probex_jax.forest.comparison import AttributeComparison, Comparison, Prediction
from probex_jax.forest.description import Answer, Description, Neighbour, Quantity, RankedTags
from probex_jax.forest.discovery import Discovery, FoundTree, discover
from probex_jax.forest.forest import Forest, Nearest
from probex_jax.forest.growing import grow
from probex_jax.forest.relatives import Relatives, RelativesIn
from probex_jax.forest.router import Route, TreeRouter, route
from probex_jax.forest.tree import Tree
from probex_jax.forest.verify import verify_forest

__all__ = [
    "Answer",
    "AttributeComparison",
    "Comparison",
    "Description",
    "Discovery",
    "Forest",
    "FoundTree",
    "Nearest",
    "Neighbour",
    "Prediction",
    "Quantity",
    "RankedTags",
    "Relatives",
    "RelativesIn",
    "Route",
    "Tree",
    "TreeRouter",
    "discover",
    "grow",
    "route",
    "verify_forest",
]
