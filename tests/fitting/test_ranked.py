"""Ranked lists: their curves and their cuts, against plain loops, and what the cut promises."""

import numpy as np
import pytest

from probex_jax.fitting.ranked import Curve, fitted_curve, lowest_cut


def test_a_curve_is_where_the_likelihood_of_smoothed_targets_is_stationary():
    rng = np.random.default_rng(0)
    scores = rng.normal(3, 2, 500)
    right = rng.random(500) < 1 / (1 + np.exp(4 - scores))
    targets = np.where(right, (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2))
    wrong = fitted_curve(scores, right)(scores) - targets
    np.testing.assert_allclose([wrong.mean(), (wrong * scores).mean()], 0, atol=1e-5)


def test_a_floor_is_found():
    rng = np.random.default_rng(1)
    scores, true = rng.normal(size=20_000), Curve(5.0, -7.0, 0.2)
    found = fitted_curve(scores, rng.random(20_000) < true(scores), floor=True)
    np.testing.assert_allclose(found, true, rtol=0.1)
    np.testing.assert_allclose(found(scores).mean(), true(scores).mean(), atol=0.01)


@pytest.mark.parametrize("floor", [False, True])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_curve_is_finite_where_scores_divide_right_from_wrong(scale, floor):
    scores, right = scale * np.arange(8.0), np.arange(8) > 3
    p = fitted_curve(scores, right, floor=floor)(scores)
    assert (np.diff(p) > 0).all()
    assert p[3] < 0.5 < p[4]
    assert p[0] > 0
    assert p[-1] < 1


def test_far_scores_have_probabilities_without_overflow():
    np.testing.assert_array_equal(Curve(5.0, 0.0)(np.array([-1e6, 1e6])), [0, 1])


def worst_shares(scores, right, cut):
    """The largest share of wrong ones of each model, at this cut or a higher one."""
    worst = np.zeros(len(scores))
    for place, (of_model, are) in enumerate(zip(scores, right, strict=True)):
        for higher in of_model[of_model >= cut]:
            worst[place] = max(worst[place], np.mean(~are[of_model >= higher]))
    return worst


@pytest.mark.parametrize("seed", range(4))
def test_the_cut_is_the_lowest_of_bounded_risk(seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(30, 9))
    right = scores + rng.normal(size=scores.shape) > 0.5
    risk = [
        (worst_shares(scores, right, cut).sum() + 1) / 31 for cut in np.sort(scores.ravel())[::-1]
    ]
    lowest = np.sort(scores.ravel())[::-1][np.flatnonzero(np.array(risk) <= 0.2)[-1]]
    assert lowest_cut(scores, right, 0.2) == pytest.approx(lowest)


def test_equal_scores_are_shown_together():
    scores, right = np.full((40, 2), 0.5), np.tile([True, False], (40, 1))
    assert lowest_cut(scores, right, 0.2) is None
    assert lowest_cut(scores, right, 0.6) == 0.5


def test_few_models_promise_nothing():
    right = np.ones((3, 2), bool)
    assert lowest_cut(right.astype(float), right, 0.2) is None


def test_the_promise_holds_for_other_models():
    """Mean over many draws of models to calibrate on, the cut being used on others."""
    shares = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        scores = rng.normal(size=(80, 12))
        right = scores + rng.normal(size=scores.shape) > 0.7
        cut = lowest_cut(scores[:40], right[:40], 0.2)
        shown = scores[40:] >= cut
        shares.append(np.mean((shown & ~right[40:]).sum(1) / np.maximum(shown.sum(1), 1)))
    assert 0.1 < np.mean(shares) < 0.2
