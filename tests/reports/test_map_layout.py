import numpy as np
import pytest

from probex_jax.errors import ProbexError
from probex_jax.reports import layout_2d, position_among


def clusters(n_models, n_clusters=3, *, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_clusters, 8))
    which = np.arange(n_models) % n_clusters
    return centres[which] + 0.1 * rng.normal(size=(n_models, 8)), which


def test_like_models_are_laid_out_near_one_another():
    vectors, which = clusters(30)
    points = layout_2d(vectors)
    gaps = np.linalg.norm(points[:, None] - points, axis=-1) + 1e9 * np.eye(30)
    assert points.shape == (30, 2)
    assert np.array_equal(which[gaps.argmin(axis=1)], which)
    np.testing.assert_array_equal(points, layout_2d(vectors))


def test_lengths_do_not_matter():
    vectors, _ = clusters(3)
    lengths = np.array([[1.0], [20.0], [0.3]])
    np.testing.assert_allclose(layout_2d(vectors), layout_2d(lengths * vectors), atol=1e-12)


@pytest.mark.parametrize("n_models", [0, 1, 2, 3])
def test_few_models_keep_their_distances(n_models):
    vectors, _ = clusters(n_models)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    points = layout_2d(vectors)
    for places in (points, units):
        assert len(places) == n_models
    gaps = [np.linalg.norm(x[:, None] - x, axis=-1) for x in (points, units)]
    np.testing.assert_allclose(*gaps, atol=1e-12)


@pytest.mark.parametrize("dim", [1, 2])
def test_directions_of_two_numbers_keep_their_distances(dim):
    vectors = np.random.default_rng(0).normal(size=(9, dim))
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    points = layout_2d(vectors)
    gaps = [np.linalg.norm(x[:, None] - x, axis=-1) for x in (points, units)]
    np.testing.assert_allclose(*gaps, atol=1e-12)


@pytest.mark.parametrize("vectors", [np.ones([6, 4]), np.zeros([6, 4])])
def test_models_that_are_the_same_stand_in_one_place(vectors):
    np.testing.assert_array_equal(layout_2d(vectors), np.zeros([6, 2]))


def test_a_new_model_stands_among_its_like():
    vectors, which = clusters(31)
    points = layout_2d(vectors[:30])
    place = position_among(points, vectors[:30], vectors[30])
    nearest = np.linalg.norm(points - place, axis=1).argmin()
    assert which[nearest] == which[30]
    np.testing.assert_allclose(
        position_among(points, vectors[:30], 5 * vectors[7]), points[7], atol=1e-2
    )


def test_what_has_no_place_is_refused():
    with pytest.raises(ProbexError, match="not finite"):
        layout_2d(np.array([[1.0, np.nan]]))
    with pytest.raises(ProbexError):
        position_among(np.zeros([0, 2]), np.zeros([0, 3]), np.ones(3))
