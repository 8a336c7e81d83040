"""What a lineage says of models that are described."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from probex_jax.buckets import shown_path
from probex_jax.lineage.lineage import Edge, Lineage


@dataclass(frozen=True)
class Relatives:
    """What a lineage says of a model.

    Args:
      parents: edges from its parents.
      same_weights: ids of models with the same weights.
    """

    parents: tuple[Edge, ...] = ()
    same_weights: tuple[str, ...] = ()


class RelativesIn:
    """Finds the relatives of models in a lineage, by their paths.

    Args:
      lineage: of some models. Relative paths in it are of the current folder.

    Example:
      >>> from probex_jax.lineage.lineage import Node
      >>> nodes = (Node("a", "a.bin", "f0", "root"), Node("b", "b.bin", "f0", "derived"))
      >>> lineage = Lineage(nodes, (Edge("a", "b", "fine-tune", 1e-4, 0.98, 0.05),))
      >>> [edge.parent for edge in RelativesIn(lineage)("b.bin").parents]
      ['a']
    """

    def __init__(self, lineage: Lineage):
        self._ids = {_key(node.path): node.id for node in lineage.nodes}
        self._original = {node.id: node.copy_of for node in lineage.nodes if node.copy_of}
        self._parents: dict[str, list[Edge]] = defaultdict(list)
        for edge in lineage.edges:
            self._parents[edge.child].append(edge)
        self._same = {id: group.models for group in lineage.copies for id in group.models}

    def __call__(self, path: str | Path) -> Relatives | None:
        """The relatives of the model at a path; None if the lineage does not know it.

        A copy has the parents of the model that it is a copy of.
        """
        id = self._ids.get(_key(shown_path(path)))
        return None if id is None else self.of(id)

    def of(self, id: str) -> Relatives:
        """The relatives of a model of the lineage by its id."""
        parents = self._parents.get(id) or self._parents.get(self._original.get(id, ""), [])
        same = tuple(other for other in self._same.get(id, ()) if other != id)
        return Relatives(tuple(parents), same)


def _key(path: str) -> str:
    return path if "://" in path else os.path.realpath(path)
