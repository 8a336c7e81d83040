"""The cheapest directed tree against all trees, and what edges cost."""

import itertools
import math

import numpy as np
import pytest

from probex_jax.lineage.tree import arborescence, cost, misplaced


def forests(count):
    """All ways to give models parents without circles."""
    for parents in itertools.product(range(-1, count), repeat=count):
        chosen = {child: parent for child, parent in enumerate(parents) if parent >= 0}
        if all(ends(child, chosen) for child in chosen):
            yield chosen


def ends(child, parents):
    for _ in range(len(parents) + 1):
        if child not in parents:
            return True
        child = parents[child]
    return False


@pytest.mark.parametrize("density", [0.4, 1.0])
def test_the_cheapest_of_all_trees(density):
    rng = np.random.default_rng(0)
    everything = [*forests(4)]
    for _ in range(60):
        arcs = {
            (a, b): float(rng.normal())
            for a, b in itertools.permutations(range(4), 2)
            if rng.uniform() < density
        }

        def price(tree, arcs=arcs):
            return (4 - len(tree), sum(arcs[parent, child] for child, parent in tree.items()))

        possible = [t for t in everything if all((p, c) in arcs for c, p in t.items())]
        best = min(map(price, possible))
        assert price(arborescence(4, arcs, {})) == pytest.approx(best)


def test_parents_that_are_known_stay():
    rng = np.random.default_rng(0)
    everything = [tree for tree in forests(4) if tree.get(2) == 3]
    for _ in range(30):
        arcs = {pair: float(rng.normal()) for pair in itertools.permutations(range(4), 2)}

        def price(tree, arcs=arcs):
            return sum(arcs[p, c] for c, p in tree.items() if c != 2)

        found = arborescence(4, arcs, {2: 3})
        assert found[2] == 3
        assert len(found) == 3
        assert price(found) == pytest.approx(min(price(t) for t in everything if len(t) == 3))


def test_circles_within_circles():
    """Pairs that prefer each other, in pairs of pairs, with one way in."""
    arcs = {}
    for size in (2, 4, 8):
        for begin in range(0, 8, size):
            one, other = begin, begin + size // 2
            arcs[one, other] = arcs[other, one] = float(size)
    arcs[8, 5] = 100.0
    found = arborescence(9, arcs, {})
    assert found == {5: 8, 4: 5, 6: 4, 7: 6, 0: 4, 1: 0, 2: 0, 3: 2}


def test_a_long_random_tree_with_dearer_arcs_beside():
    rng, count = np.random.default_rng(0), 3000
    true = {child: int(rng.integers(child)) for child in range(1, count)}
    arcs = {(parent, child): float(rng.uniform()) for child, parent in true.items()}
    for _ in range(4 * count):
        arc = tuple(rng.integers(count, size=2).tolist())
        if arc[0] != arc[1] and arc not in arcs:
            arcs[arc] = 1.5 + float(rng.uniform())
    arcs = {arc: value for arc, value in arcs.items() if arc[1] != 0}
    assert arborescence(count, arcs, {}) == true


def test_no_arcs_no_parents():
    assert arborescence(3, {}, {}) == {}
    assert arborescence(1, {}, {}) == {}


def test_cost_falls_with_the_odds_of_the_direction_and_rises_with_distance():
    for squared, direction in ((0.3, 1.2), (1e-4, -3.0), (9.0, 0.0)):
        odds = math.exp(direction)
        expected = math.log(squared) - 2 * math.log(odds / (1 + odds))
        assert cost(squared, direction) == pytest.approx(expected)
    assert math.isfinite(cost(0.0, 0.0))
    assert math.isfinite(cost(1.0, -800.0))


def test_distances_add_up_along_a_tree():
    rng = np.random.default_rng(0)
    root = rng.normal(size=20_000)
    a, b, c = (root + 0.1 * rng.normal(size=root.shape) for _ in range(3))
    below = a + 0.1 * rng.normal(size=root.shape)

    def off(parent, child, others):
        squared = (np.array([np.square(o - x).sum() for o in others]) for x in (parent, child))
        return misplaced(*squared, np.square(parent - child).sum())

    assert off(root, a, [b, c, below]) < 0.05
    assert off(a, below, [root, b, c]) < 0.05
    assert off(b, c, [a, below]) > 0.95
    assert off(root, below, [b, c]) < 0.05
    assert off(root, a, []) is None
    assert off(a, a, [b, c]) is None
