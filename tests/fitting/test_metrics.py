"""Intervals of figures, against SciPy's."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from probex_jax.fitting import (
    Number,
    OneClass,
    SeveralClasses,
    auc_score,
    macro_auc,
    mean_score,
    share,
)


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


@pytest.mark.parametrize("ties", [False, True])
def test_macro_auc_is_scikit_learns_over_classes_that_can_be_told(ties):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(30, 5))
    logits = logits.round() if ties else logits
    several = rng.random((30, 5)) < 0.4
    several[:, 3], several[:, 4] = True, False  # all and none: neither can be told
    one = rng.integers(3, size=30)  # none of the last two
    for y, of_class in ((several, several), (one, one[:, None] == np.arange(5))):
        expected = np.mean([roc_auc_score(of_class[:, c], logits[:, c]) for c in range(3)])
        assert macro_auc(logits, y) == pytest.approx(expected, abs=1e-12)
        score = auc_score(logits, y)
        assert (score.value, score.chance) == (macro_auc(logits, y), 0.5)
        assert score.low < score.value < score.high


def test_of_one_class_alone_there_is_no_auc():
    logits, y = np.zeros([3, 2]), np.zeros(3, int)
    assert np.isnan(macro_auc(logits, y))
    assert auc_score(logits, y) is None


def test_an_auc_of_one_of_several_does_not_ask_what_all_logits_share():
    """Logits are told from each other only: what is added to all of a model changes no answer."""
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(20, 3)), rng.integers(3, size=20)
    moved = logits + 10 * rng.normal(size=(20, 1))
    assert OneClass().auc(moved, y).value == pytest.approx(OneClass().auc(logits, y).value)
    assert Number().auc(logits[:, :1], logits[:, 0]) is None


def test_the_chance_of_one_class_among_others_is_how_common_it_is():
    known, asked = np.array([0, 0, 0, 1]), np.array([0, 1, 2])
    np.testing.assert_allclose(OneClass(3).chance_by_class(known, asked), [0.75, 0.25, 0])
