"""How many trees there are, and which models are of each."""

import numpy as np
import pytest

from probex_jax.forest.clusters import Clusters
from probex_jax.forest.sketch import Sketch

SKETCH = Sketch.of_layers({f"body.{n}.weight": (16, 16) for n in range(4)})
D = SKETCH.size
FEW = [2, 3, 4, 5, 6, 7, 8, 2, 3, 4, 5, 6, 7]


def mixture(sizes, noise=0.3, seed=0, sketch=SKETCH):
    """Sketches of models around as many roots as there are sizes, shuffled, and their roots."""
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(len(sizes), sketch.size))
    of = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return roots[of] + noise * rng.normal(size=(len(of), sketch.size)), of


def noise_of(cosine):
    """The noise with which two models of a tree have a cosine."""
    return (1 / cosine - 1) ** 0.5


def found(sketches, sketch=SKETCH, **settings):
    clusters = Clusters(sketch, **settings)
    for number, sketch_D in enumerate(sketches):
        clusters.add(number, sketch_D)
    return clusters.finish()


def partition(clusters):
    return {frozenset(cluster.members) for cluster in clusters}


def expected(of):
    return {frozenset(np.flatnonzero(of == root).tolist()) for root in set(of.tolist())}


@pytest.mark.parametrize(
    "sizes",
    [[1], [2], [30], [1, 1], [20, 20], [60, 2], [30, 1], FEW, [1] * 7, [40, 1, 1]],
    ids=str,
)
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.5, noise_of(0.4)])
def test_the_number_of_trees_is_found(sizes, noise):
    sketches, of = mixture(sizes, noise)
    assert partition(found(sketches)) == expected(of)


@pytest.mark.parametrize("seed", range(3))
def test_families_of_few_models_that_were_trained_far_are_found(seed):
    """Thirteen, whose models have cosines of .36 to .43 with each other."""
    rng = np.random.default_rng(seed)
    sketches, of = mixture(FEW, 0.0, seed)
    far_N1 = noise_of(rng.uniform(0.36, 0.43, size=[len(of), 1]))
    assert partition(found(sketches + far_N1 * rng.normal(size=sketches.shape))) == expected(of)


def test_one_tree_of_most_unequal_models_is_one():
    """Some were fine-tuned from one another, the others have nothing but the root."""
    rng = np.random.default_rng(0)
    root, child = rng.normal(size=(2, D))
    near = root + child + 0.05 * rng.normal(size=(30, D))
    far = root + noise_of(0.35) * rng.normal(size=(30, D))
    models = rng.permutation([root, *near, *far])
    assert len(found(models)) == 1
    assert len(found(models, models_at_once=7)) == 1


def test_unrelated_models_are_trees_of_one_whatever_their_number():
    sketches, of = mixture([1] * 200)
    assert partition(found(sketches)) == expected(of)


def test_what_rows_and_columns_have_in_common_makes_no_tree():
    """Initialisers with a mean, outlying channels: unrelated models have them, too."""
    rng = np.random.default_rng(0)
    sizes_W = np.exp(rng.normal(size=64 * 16) % 1)
    models = 1 + rng.normal(size=(20, D)) * sizes_W
    assert len(found(models)) == 20


def test_a_layer_that_unrelated_models_share_makes_no_tree():
    sketches, of = mixture([4, 4, 1, 1])
    shared = SKETCH.columns(SKETCH.layers[1])
    sketches[:, shared] = sketches[0, shared]
    assert partition(found(sketches)) == expected(of)


def test_none_of_none():
    assert found([]) == []


def test_models_of_zeros_have_nothing_in_common_with_others():
    sketches, of = mixture([3, 3])
    both = expected(of) | {frozenset([6]), frozenset([7])}
    assert partition(found([*sketches, np.zeros(D), np.zeros(D)])) == both


@pytest.mark.parametrize("models_at_once", [2, 3, 7, 16])
def test_a_stream_gives_the_partition_of_all_at_once(models_at_once):
    sketches, of = mixture([25, 20, 6, 1], 0.4)
    assert partition(found(sketches, models_at_once=models_at_once)) == expected(of)
    # A tree of which no model comes before others are settled.
    late = np.argsort(of, kind="stable")
    assert partition(found(sketches[late], models_at_once=models_at_once)) == expected(of[late])


def test_a_model_between_two_settled_clusters_joins_them():
    """No two of them are related by themselves, each to the one that comes last."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=D)
    apart = root + noise_of(0.19) * rng.normal(size=(2, D))
    assert len(found(apart)) == 2
    clusters = found([*apart, root], models_at_once=2)
    assert partition(clusters) == {frozenset(range(3))}


def test_what_comes_later_costs_no_clustering(monkeypatch):
    calls = []
    real = Clusters._settle
    monkeypatch.setattr(Clusters, "_settle", lambda self: calls.append(1) or real(self))
    sketches, _ = mixture([100, 100])
    found(sketches, models_at_once=20)
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


@pytest.mark.parametrize(("deviations", "trees"), [(12, 1), (3, 2)])
def test_models_are_related_beyond_what_chance_explains(deviations, trees):
    """The spread of the cosines of unrelated models is one over the root of the entries."""
    sketch = Sketch.of_layers({"body.weight": (32, 32)})
    cosine = deviations / sketch.size**0.5
    rng = np.random.default_rng(0)
    one, other = np.linalg.qr(rng.normal(size=(sketch.size, 2)))[0].T
    models = np.stack([one, cosine * one + (1 - cosine**2) ** 0.5 * other])
    assert len(found(models, sketch)) == len(found(9 * models, sketch)) == trees


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
