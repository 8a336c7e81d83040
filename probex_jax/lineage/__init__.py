"""Who descends from whom among models, which are the same, and what was merged.

`trace` draws the family tree of many models, `compare` says what it can of two.

A first pass makes a `sketch` of each model, from which `copies` (`marks`, `difference`) and
`families` are found. In a family `merges` are least squares on sketches; other models are compared
in full with their neighbours (`comparing`, `relation`), and the cheapest directed `tree` is grown
(`growing`). `kinship` tests two models against independence, `adapters` an adapter and its base.
`family_trees` are what `edges` join, for pictures and tables; `reading` keeps a lineage in a file.
"""

from probex_jax.lineage.adapters import BaseFit, base_fit
from probex_jax.lineage.copies import copies_among
from probex_jax.lineage.family_trees import FamilyTree, family_trees
from probex_jax.lineage.kinship import Kinship, kinship
from probex_jax.lineage.lineage import KINDS, Copies, Edge, Lineage, Node
from probex_jax.lineage.reading import load_lineage, save_lineage, verify_lineage
from probex_jax.lineage.relation import Relation, relate
from probex_jax.lineage.trace import trace
from probex_jax.lineage.verdict import Verdict, compare

__all__ = [
    "KINDS",
    "BaseFit",
    "Copies",
    "Edge",
    "FamilyTree",
    "Kinship",
    "Lineage",
    "Node",
    "Relation",
    "Verdict",
    "base_fit",
    "compare",
    "copies_among",
    "family_trees",
    "kinship",
    "load_lineage",
    "relate",
    "save_lineage",
    "trace",
    "verify_lineage",
]
