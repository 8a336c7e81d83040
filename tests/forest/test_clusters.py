"""How many trees there are, and which models are of each."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from probex_jax.forest.clusters import Clusters, _distances

D = 60


def mixture(sizes, noise=0.3, seed=0, offset=0.0):
    """Sketches of models around as many roots as there are sizes, shuffled, and their roots."""
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(len(sizes), D)) + offset
    of = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return roots[of] + noise * rng.normal(size=(len(of), D)), of


def found(sketches, **settings):
    clusters = Clusters(**settings)
    for number, sketch in enumerate(sketches):
        clusters.add(number, sketch)
    return clusters.finish()


def partition(clusters):
    return {frozenset(cluster.members) for cluster in clusters}


def expected(of):
    return {frozenset(np.flatnonzero(of == root).tolist()) for root in set(of.tolist())}


@pytest.mark.parametrize(
    "sizes",
    [[1], [2], [30], [1, 1], [20, 20], [60, 2], [30, 1], [8, 9, 10, 11, 12], [1] * 7, [40, 1, 1]],
    ids=str,
)
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.5])
def test_the_number_of_trees_is_found(sizes, noise):
    sketches, of = mixture(sizes, noise)
    assert partition(found(sketches)) == expected(of)


def test_none_of_none():
    assert found([]) == []


def test_models_of_zeros_have_nothing_in_common_with_others():
    sketches, of = mixture([3, 3])
    assert partition(found([*sketches, np.zeros(D)])) == expected(of) | {frozenset([6])}


@pytest.mark.parametrize("ward_models", [2, 3, 7, 16])
def test_a_stream_gives_the_partition_of_all_at_once(ward_models):
    sketches, of = mixture([25, 20, 6, 1], 0.4)
    assert partition(found(sketches, ward_models=ward_models)) == expected(of)
    # A tree of which no model comes before others are settled.
    late = np.argsort(of, kind="stable")
    assert partition(found(sketches[late], ward_models=ward_models)) == expected(of[late])


def test_models_that_are_related_only_together_come_home():
    """Each by itself has less than half in common with the centre; their mean has more."""
    rng = np.random.default_rng(0)
    root, shared = rng.normal(size=(2, 4000))
    near = root + 0.1 * rng.normal(size=(4, 4000))
    far = root + 0.9 * shared + 1.18 * rng.normal(size=(4, 4000))
    clusters = found([*near, *far], ward_models=4)
    assert partition(clusters) == {frozenset(range(8))}
    np.testing.assert_allclose(clusters[0].centre, np.mean([*near, *far], axis=0))


def test_what_comes_later_costs_no_clustering(monkeypatch):
    calls = []
    real = Clusters._settle
    monkeypatch.setattr(Clusters, "_settle", lambda self: calls.append(1) or real(self))
    sketches, _ = mixture([100, 100])
    found(sketches, ward_models=20)
    assert len(calls) == 2  # once for the first twenty, once at the end


@pytest.mark.parametrize("seed", range(3))
def test_the_order_does_not_matter(seed):
    sketches, of = mixture([12, 7, 3, 1], 0.5, seed)
    order = np.random.default_rng(seed).permutation(len(sketches))
    renumbered = {
        frozenset(int(order[place]) for place in members)
        for members in partition(found(sketches[order]))
    }
    assert renumbered == expected(of)


def test_what_all_models_have_in_common_does_not_join_unrelated_ones_of_equal_size():
    """Half of the squared length apart is the border: cosines above a half are of one tree."""
    one = np.eye(D)[0]
    for cosine, trees in ((0.55, 1), (0.45, 2)):
        other = cosine * one + np.sqrt(1 - cosine**2) * np.eye(D)[1]
        assert len(found([one, other])) == trees
        assert len(found([9 * one, 9 * other])) == trees  # whatever the unit


def test_centres_are_means_and_the_trees_of_the_first_models_come_first():
    sketches, of = mixture([9, 5, 1])
    clusters = found(sketches)
    assert [c.members[0] for c in clusters] == sorted(min(m) for m in expected(of))
    for cluster in clusters:
        assert cluster.members == sorted(cluster.members)
        np.testing.assert_allclose(cluster.centre, sketches[cluster.members].mean(axis=0))


def test_loras_are_one_tree_whose_centre_is_their_mean():
    sketches = np.random.default_rng(0).normal(size=(9, D))
    [cluster] = found(sketches, one_tree=True)
    assert cluster.members == list(range(9))
    np.testing.assert_allclose(cluster.centre, sketches.mean(axis=0))
    assert len(found(sketches)) == 9


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_distances_are_those_of_scipy(offset):
    sketches, _ = mixture([5, 4], 0.1, offset=offset)
    np.testing.assert_allclose(_distances(sketches), pdist(sketches), rtol=1e-7)
