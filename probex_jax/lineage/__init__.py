"""Lineage: which models descend from which, and which are the same weights."""

from probex_jax.lineage.joined import Family, families
from probex_jax.lineage.lineage import KINDS, Copies, Edge, Lineage, Node
from probex_jax.lineage.reading import load_lineage, save_lineage, verify_lineage

__all__ = [
    "KINDS",
    "Copies",
    "Edge",
    "Family",
    "Lineage",
    "Node",
    "families",
    "load_lineage",
    "save_lineage",
    "verify_lineage",
]
