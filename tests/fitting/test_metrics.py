"""Intervals of figures, against SciPy's."""

import numpy as np
import pytest
from scipy.stats import binomtest

from probex_jax.fitting import Number, OneClass, SeveralClasses, mean_score, share


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
    told = SeveralClasses().score(2 * eye - 1, eye), OneClass().score(eye, np.arange(4))
    for score in told:
        assert score.value == score.high == 1
        assert score.low == pytest.approx(0.025**0.25)


def test_chance_is_the_commonest_answer_counted_by_hand():
    known = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]])
    asked = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]])
    # Three of four, three of four, half, one of four: yes, yes, no, no.
    by_class = SeveralClasses().chance_by_class(known, asked)
    np.testing.assert_allclose(by_class, [1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert SeveralClasses().chance(known, asked) == pytest.approx(6 / 12)
    assert OneClass().chance([0, 0, 0, 1, 1, 2], [0, 1, 1, 2, 2]) == pytest.approx(1 / 5)
    assert OneClass().chance([0, 0, 1, 1, 2], [1, 1, 1, 2]) == pytest.approx(3 / 8), "a tie"
    task = Number().fitted(np.array([1.0, 3.0]))
    assert task.chance([1.0, 3.0], [2.0, 4.0]) == pytest.approx(-1), "R² of the mean"
