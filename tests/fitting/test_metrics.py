"""Intervals of figures, against SciPy's."""

import numpy as np
import pytest
from scipy.stats import binomtest

from probex_jax.experts import accuracy, mean_score, share, top_accuracy


@pytest.mark.parametrize(("right", "n_models"), [(64, 64), (0, 64), (3, 3), (1, 1)])
def test_what_is_the_same_for_all_models_has_the_exact_interval(right, n_models):
    exact = binomtest(right, n_models).proportion_ci(0.95, method="exact")
    score = share(np.arange(n_models) < right)
    assert (score.low, score.high) == pytest.approx((exact.low, exact.high), abs=1e-12)
    assert (score.value, score.n_models) == (right / n_models, n_models)


def test_what_differs_has_the_bootstrap_s():
    values = np.random.default_rng(0).uniform(size=40)
    assert share(values) == mean_score(values)


def test_accuracies_that_are_perfect_are_not_certain():
    eye = np.eye(4)
    for score in (accuracy(2 * eye - 1, eye), top_accuracy(eye, np.arange(4))):
        assert score.value == score.high == 1
        assert score.low == pytest.approx(0.025**0.25)
