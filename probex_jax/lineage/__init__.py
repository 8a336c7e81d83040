"""Lineage: which models descend from which, and which are the same weights."""

from probex_jax.lineage.family_trees import FamilyTree, family_trees
from probex_jax.lineage.lineage import KINDS, Copies, Edge, Lineage, Node
from probex_jax.lineage.reading import load_lineage, save_lineage, verify_lineage
from probex_jax.lineage.trace import trace

__all__ = [
    "KINDS",
    "Copies",
    "Edge",
    "FamilyTree",
    "Lineage",
    "Node",
    "family_trees",
    "load_lineage",
    "save_lineage",
    "trace",
    "verify_lineage",
]
