"""The directed tree of models that are kin.

Letters: K models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from probex_jax.errors import ProbexError

# Dearer than any tree, so that there are as few roots as can be.
_ANOTHER_ROOT = 1e6


def arborescence(
    count: int, arcs: Mapping[tuple[int, int], float], fixed: Mapping[int, int]
) -> dict[int, int]:
    """The parents of models by the cheapest directed tree (Edmonds, 1967).

    Args:
      count: how many models there are, N.
      arcs: parent and child to what it costs that the one is derived from the other.
      fixed: parents that are known.

    Returns:
      Child to parent; roots have none. As few are roots as the arcs allow.

    Raises:
      ProbexError: networkx is not installed.

    Example:
      >>> arborescence(3, {(0, 1): 1.0, (1, 0): 2.0, (1, 2): 1.0, (0, 2): 3.0}, {})
      {1: 0, 2: 1}
    """
    try:
        import networkx as nx
    except ModuleNotFoundError:
        raise ProbexError(
            "lineage needs networkx: pip install 'networkx>=3.2' (extra `commands`)"
        ) from None
    graph = nx.DiGraph()
    graph.add_nodes_from(range(-1, count))
    graph.add_weighted_edges_from((-1, number, _ANOTHER_ROOT) for number in range(count))
    graph.add_weighted_edges_from(
        (parent, child, cost) for (parent, child), cost in arcs.items() if child not in fixed
    )
    for child, parent in fixed.items():
        graph.remove_edge(-1, child)
        graph.add_edge(parent, child, weight=0.0)
    found = nx.minimum_spanning_arborescence(graph)
    return {
        child: parent for parent, child in sorted(found.edges, key=lambda e: e[1]) if parent >= 0
    }


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
