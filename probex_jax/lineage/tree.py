"""The directed tree of models that are kin.

Letters: K models.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Callable, Mapping

import numpy as np

# Dearer than any tree, so that there are as few roots as can be.
_ANOTHER_ROOT = 1e6


def arborescence(
    count: int, arcs: Mapping[tuple[int, int], float], fixed: Mapping[int, int]
) -> dict[int, int]:
    """The parents of models by the cheapest directed tree (Edmonds, 1967), in near-linear time.

    networkx takes 39 s for a thousand models and quadratic time, and SciPy has no directed trees.

    Args:
      count: how many models there are, N.
      arcs: parent and child to what it costs that the one is derived from the other.
      fixed: parents that are known.

    Returns:
      Child to parent; roots have none. As few are roots as the arcs allow.

    Example:
      >>> arborescence(3, {(0, 1): 1.0, (1, 0): 2.0, (1, 2): 1.0, (0, 2): 3.0}, {})
      {1: 0, 2: 1}
    """
    root = count
    entering: list[_Entering] = [_Entering() for _ in range(count + 1)]
    for child in range(count):
        if child in fixed:
            entering[child].add(0.0, fixed[child], child)
        else:
            entering[child].add(_ANOTHER_ROOT, root, child)
    for (parent, child), value in arcs.items():
        if child not in fixed:
            entering[child].add(value, parent, child)
    sets = _Sets(count + 1)
    chosen: dict[int, tuple[int, int]] = {}
    contracted: list[tuple[int, int, list[tuple[int, int]]]] = []
    visit = [-1] * count + [root]
    for start in range(count):
        at = start
        path: list[tuple[int, tuple[int, int]]] = []
        while visit[at] < 0:
            best = entering[at].pop(functools.partial(sets.has, at))
            path.append((at, best))
            visit[at] = start
            at = sets.of(best[0])
            if visit[at] == start:
                # The arcs of the path from here on are a cycle, which becomes one node.
                places = [node for node, _ in path]
                cycle = path[places.index(at) :]
                del path[places.index(at) :]
                before, whole = sets.joins, entering[at]
                node = at
                for other, _ in cycle[1:]:
                    whole = whole.joined(entering[other])
                    node = sets.join(node, other)
                entering[node], visit[node] = whole, -1
                contracted.append((node, before, [arc for _, arc in cycle]))
                at = node
        chosen |= {sets.of(arc[1]): arc for _, arc in path}
    for node, before, inside in reversed(contracted):
        into = chosen[node]
        sets.undo(before)
        chosen |= {sets.of(arc[1]): arc for arc in inside}
        chosen[sets.of(into[1])] = into
    parents = {child: parent for parent, child in chosen.values() if parent != root}
    return dict(sorted(parents.items()))


class _Entering:
    """The arcs that enter a node, the cheapest first; what they cost is told from its own zero."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int]] = []
        self._zero = 0.0

    def add(self, value: float, parent: int, child: int) -> None:
        heapq.heappush(self._heap, (value + self._zero, parent, child))

    def pop(self, is_inside: Callable[[int], bool]) -> tuple[int, int]:
        """The cheapest arc from outside; the others then cost so much less."""
        value, parent, child = heapq.heappop(self._heap)
        while is_inside(parent):
            value, parent, child = heapq.heappop(self._heap)
        self._zero = value
        return parent, child

    def joined(self, other: _Entering) -> _Entering:
        """The arcs of both."""
        large, small = (self, other) if len(self._heap) >= len(other._heap) else (other, self)
        for value, parent, child in small._heap:
            large.add(value - small._zero, parent, child)
        return large


class _Sets:
    """Disjoint sets of nodes, whose joins can be undone."""

    def __init__(self, count: int):
        self._above = list(range(count))
        self._sizes = [1] * count
        self._joined: list[int] = []

    @property
    def joins(self) -> int:
        """How many joins there were."""
        return len(self._joined)

    def of(self, node: int) -> int:
        """The node that stands for a node's set."""
        while self._above[node] != node:
            node = self._above[node]
        return node

    def has(self, node: int, other: int) -> bool:
        """Whether a node stands for the set of another."""
        return self.of(other) == node

    def join(self, one: int, other: int) -> int:
        """Joins two sets by the nodes that stand for them; the one that stands for both."""
        if self._sizes[one] < self._sizes[other]:
            one, other = other, one
        self._above[other] = one
        self._sizes[one] += self._sizes[other]
        self._joined.append(other)
        return one

    def undo(self, joins: int) -> None:
        """Undoes all joins but the first ones."""
        while len(self._joined) > joins:
            node = self._joined.pop()
            self._sizes[self._above[node]] -= self._sizes[node]
            self._above[node] = node


def cost(squared: float, direction: float) -> float:
    """What it costs that a model is another's child: the log of their distance over the odds.

    Args:
      squared: their squared distance.
      direction: the log odds that the child is derived from the parent.

    Returns:
      log d² - 2 log p, with p the probability of the direction.
    """
    return math.log(max(squared, 1e-30)) + 2 * float(np.logaddexp(0, -direction))


def misplaced(parent_K: np.ndarray, child_K: np.ndarray, apart: float) -> float | None:
    """How little the distances of other models fit a child's being derived from a parent.

    What training adds to different models is nearly at right angles, so squared distances add up
    along the tree: each other model is farther from one of the two by their squared distance.
    Children of a parent that is not there are not so.

    Args:
      parent_K: squared distances of other models from the parent.
      child_K: from the child.
      apart: the squared distance of parent and child.

    Returns:
      0 for a perfect fit, 1 for none: the mean over the others. None if there are none.

    Example:
      >>> misplaced(np.array([1.0, 9.0]), np.array([5.0, 5.0]), 4.0)
      0.0
    """
    if not len(parent_K) or not apart > 0:
        return None
    farther_K = (child_K - parent_K) / apart
    return float(np.minimum(np.abs(farther_K - 1), np.abs(farther_K + 1)).clip(0, 1).mean())
