"""Numbers, also on a logarithmic scale."""

import jax.numpy as jnp
import numpy as np
import pytest

import probex_jax as px
from probex_jax.fitting.conformal import Conformal
from probex_jax.fitting.number import Number, is_wide


def test_wide_numbers_are_told_by_their_logarithms():
    y = np.geomspace(1e-4, 1e-1, 7)
    task = Number(log=True).fitted(y)
    assert (task.mean, task.std) == pytest.approx((np.log(y).mean(), np.log(y).std()))
    logits = task.targets(y, 1)
    np.testing.assert_allclose(task.predictions(jnp.asarray(logits))[:, 0], y, rtol=1e-5)
    assert task.accuracies(logits, y) == pytest.approx(np.ones(7))
    assert task.chance(y, y) == pytest.approx(0)
    off = logits + 0.3
    errors = np.log(np.asarray(task.predictions(jnp.asarray(off)))[:, 0]) - np.log(y)
    assert task.accuracies(off, y) == pytest.approx(1 - (errors / task.std) ** 2, abs=1e-4)
    assert task.best_temperature(off, y) == pytest.approx(0.3, rel=1e-4)
    assert task.promises(np.asarray(task.predictions(jnp.asarray(off), 0.3)), y)[1].all()
    assert not task.promises(np.asarray(task.predictions(jnp.asarray(off), 0.1)), y)[1].any()


def test_numbers_with_logarithms_are_above_0():
    with pytest.raises(px.ProbexError, match="rates"):
        Number(log=True).check("rates", np.array([0.0, 1.0]), 2, 1)
    Number(log=True).check("rates", np.array([0.1, 1.0]), 2, 1)


@pytest.mark.parametrize(
    ("y", "ends"),
    [([0.1, 0.9], (0.0, 1.0)), ([1.0, 9.0], (0.0, None)), ([-1.0, 0.5], (None, None))],
    ids=["shares", "counts", "any"],
)
def test_intervals_stay_where_numbers_can_be(y, ends):
    task = Number().fitted(np.array(y))
    assert (task.least, task.most) == ends
    wide = Conformal(0.9, 100.0, 40)
    [[low, high]] = task.region(np.zeros([1, 1]), 1.0, wide)
    assert low == (task.mean - 100 * task.std if ends[0] is None else ends[0])
    assert high == (task.mean + 100 * task.std if ends[1] is None else ends[1])


@pytest.mark.parametrize(
    ("y", "wide"),
    [
        (np.geomspace(1, 100, 20), True),
        (np.linspace(1, 100, 20), False),
        (np.geomspace(1, 3, 20), False),
        (np.append(np.geomspace(1, 100, 20), 0.0), False),
        (-np.geomspace(1, 100, 20), False),
    ],
    ids=["wide", "even", "narrow", "with a zero", "negative"],
)
def test_numbers_are_wide_if_their_logarithms_are_more_even(y, wide):
    assert is_wide(y) == wide


def test_numbers_that_float32_does_not_have_are_refused():
    """However wide they are."""
    huge = np.geomspace(1e100, 1e300, 30)
    assert is_wide(huge)
    for log in (False, True):
        with pytest.raises(px.ProbexError, match="300"):
            Number(log=log).fitted(huge)


@pytest.mark.parametrize(
    ("y", "logits"),
    [(1.7e9 + np.arange(100.0), [-1.0, 0.5]), (np.linspace(0.5, 1, 20), [0.0, 3.0])],
    ids=["finer than float32", "beyond bounds"],
)
def test_numbers_lie_in_their_intervals(y, logits):
    task = Number().fitted(y)
    logits_N1 = np.array(logits)[:, None]
    values = task.predicted(logits_N1)[:, 0]
    low, high = task.region(logits_N1, 1.0, Conformal(0.9, 0.01, 20)).T
    assert ((low <= values) & (values <= high)).all()
    assert values[0] == pytest.approx(task.mean + task.std * logits[0], rel=1e-15)
