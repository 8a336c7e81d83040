"""The families of a lineage: models that are joined by edges."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from probex_jax.errors import ProbexError
from probex_jax.lineage.lineage import Edge, Lineage


@dataclass(frozen=True)
class FamilyTree:
    """Models that are joined by edges, or one whose parent is unknown or that has copies.

    Args:
      models: their ids, parents before children. Copies are left out unless they have edges.
      generation: of each, 0 for those without a parent here, else one more than the greatest of
        its parents'.
      parent: of each that has some, the main one: of a merge, that with the largest coefficient.
      merges: number of models with several parents.
    """

    models: tuple[str, ...]
    generation: Mapping[str, int]
    parent: Mapping[str, str]
    merges: int

    @property
    def roots(self) -> tuple[str, ...]:
        """Those without a parent here."""
        return tuple(model for model in self.models if model not in self.parent)

    @property
    def generations(self) -> int:
        """How many generations there are."""
        return 1 + max(self.generation.values())


def family_trees(lineage: Lineage) -> tuple[FamilyTree, ...]:
    """The families of a lineage, the largest first; models alone are in none.

    Args:
      lineage: of which each edge joins two of its nodes.

    Returns:
      A tree for each family, and for each model without edges that has copies or an unknown parent.

    Raises:
      ProbexError: if a model descends from itself.

    Example:
      >>> from probex_jax.lineage.lineage import Node
      >>> nodes = [Node(id, id, "f", "derived") for id in "abc"]
      >>> edges = [Edge(p, c, "fine-tune", 0.0, 1.0, 0.1) for p, c in ("ab", "bc")]
      >>> (family,) = family_trees(Lineage(tuple(nodes), tuple(edges)))
      >>> family.roots, family.generations
      (('a',), 3)
    """
    to: dict[str, list[Edge]] = defaultdict(list)
    children: dict[str, list[str]] = defaultdict(list)
    for edge in lineage.edges:
        to[edge.child].append(edge)
        children[edge.parent].append(edge.child)
    original = {group.models[0] for group in lineage.copies}
    placed = [
        node.id
        for node in lineage.nodes
        if node.id in to
        or node.id in children
        or (node.origin != "copy" and (node.origin == "unknown parent" or node.id in original))
    ]
    generation = _generations(placed, to, children)
    found = []
    for models in _joined(placed, to, children):
        models.sort(key=generation.__getitem__)
        found.append(
            FamilyTree(
                tuple(models),
                {model: generation[model] for model in models},
                {model: _main(to[model]) for model in models if model in to},
                sum(model in to and len(to[model]) > 1 for model in models),
            )
        )
    return tuple(sorted(found, key=lambda family: -len(family.models)))


def _main(edges: list[Edge]) -> str:
    return max(edges, key=lambda edge: (edge.coefficient or 0.0, edge.confidence)).parent


def _generations(
    placed: list[str], to: Mapping[str, list[Edge]], children: Mapping[str, list[str]]
) -> dict[str, int]:
    """Of each model, parents before children."""
    waits = {model: len(to[model]) if model in to else 0 for model in placed}
    generation = {model: 0 for model in placed if not waits[model]}
    ready = list(generation)
    for model in ready:  # grows meanwhile
        for child in children.get(model, ()):
            waits[child] -= 1
            generation[child] = max(generation.get(child, 0), generation[model] + 1)
            if not waits[child]:
                ready.append(child)
    if len(ready) < len(placed):
        model = next(model for model in placed if waits[model])
        raise ProbexError(f"lineage: model {model!r} or one of its parents descends from itself")
    return generation


def _joined(
    placed: list[str], to: Mapping[str, list[Edge]], children: Mapping[str, list[str]]
) -> list[list[str]]:
    """The models that are joined, in the given order."""
    group: dict[str, int] = {}
    count = 0
    for first in placed:
        if first in group:
            continue
        group[first] = count
        ready = [first]
        while ready:
            model = ready.pop()
            kin = [edge.parent for edge in to.get(model, ())] + list(children.get(model, ()))
            for other in kin:
                if other not in group:
                    group[other] = count
                    ready.append(other)
        count += 1
    groups: list[list[str]] = [[] for _ in range(count)]
    for model in placed:
        groups[group[model]].append(model)
    return groups
