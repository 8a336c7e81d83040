"""What it costs that one of two models is derived from the other, of the pairs compared."""

from __future__ import annotations

import math
from collections.abc import Mapping

from probex_jax.lineage.relation import Relation
from probex_jax.lineage.tree import cost


class Arcs:
    """Both directions of each pair of models.

    Args:
      relations: of pairs of models, by their places in the family.
    """

    def __init__(self, relations: Mapping[tuple[int, int], Relation]):
        self._relations: dict[tuple[int, int], tuple[Relation, int]] = {}
        for (one, other), relation in relations.items():
            self._relations[one, other] = relation, 1
            self._relations[other, one] = relation, -1
        self.costs = {
            arc: cost(self.squared(*arc), self.direction(*arc)) for arc in self._relations
        }
        self._cheapest: dict[int, list[tuple[float, int]]] = {}
        for (parent, child), value in self.costs.items():
            two = [*self._cheapest.get(child, ()), (value, parent)]
            self._cheapest[child] = sorted(two)[:2]

    def __contains__(self, arc: tuple[int, int]) -> bool:
        return arc in self._relations

    def relation(self, parent: int, child: int) -> Relation:
        """How two models relate; either may be the first."""
        return self._relations[parent, child][0]

    def squared(self, parent: int, child: int) -> float:
        """Their squared distance."""
        return float(self._relations[parent, child][0].squared.sum())

    def direction(self, parent: int, child: int) -> float:
        """The log odds that the child is derived from the parent, and not the other way round."""
        relation, sign = self._relations[parent, child]
        return sign * relation.direction

    def margin(self, parent: int, child: int) -> float:
        """How much dearer the child's best other parent is; infinite if there is none."""
        others = (value for value, other in self._cheapest[child] if other != parent)
        return next(others, math.inf) - self.costs[parent, child]
