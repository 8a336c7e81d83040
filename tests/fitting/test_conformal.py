"""Conformal prediction: what is covered, where new models are exchangeable with known ones."""

import jax.numpy as jnp
import numpy as np
import pytest

from probex_jax.fitting import Number, OneClass, SeveralClasses, Texts
from probex_jax.fitting.conformal import conformal, conformal_score


@pytest.mark.parametrize("n_known", [9, 19, 30, 59])
def test_of_exchangeable_scores_the_promised_share_is_covered(n_known):
    """Exactly ⌈.9 (n + 1)⌉ / (n + 1), whatever their distribution: each place is as likely."""
    rng = np.random.default_rng(n_known)
    scores = rng.gamma(0.3, size=[20_000, n_known + 1])
    covered = np.mean([row[-1] <= conformal_score(row[:-1]) for row in scores])
    share = np.ceil(0.9 * (n_known + 1)) / (n_known + 1)
    assert 0.9 <= share < 0.9 + 1 / (n_known + 1)
    assert covered == pytest.approx(share, abs=0.01)


def test_too_few_models_promise_nothing():
    assert conformal_score(np.arange(8.0)) is None
    assert conformal(np.arange(8.0)) is None
    assert conformal(np.arange(9.0)).score == 8.0


def test_a_class_has_its_own_score_where_enough_models_are_of_it():
    rng = np.random.default_rng(0)
    parts = rng.uniform(0, 0.1, 30), rng.uniform(0, 0.9, 25), rng.uniform(size=12)
    scores = np.concatenate(parts)
    found = conformal(scores, np.repeat([0, 1, 2], [30, 25, 12]))
    assert found.by_class.keys() == {"0", "1"}
    assert found.by_class["0"] < 0.1 < found.by_class["1"]
    assert found.scores(4).tolist() == [
        found.by_class["0"], found.by_class["1"], found.score, found.score
    ]  # fmt: skip
    assert found.score == scores[55:].max()
    assert not conformal(scores[:-4], np.repeat([0, 1, 2], [30, 25, 8])).by_class


@pytest.mark.parametrize("rare", [0.05, 0.12])
def test_sets_cover_what_they_promise_where_a_class_is_rare(rare):
    """Too rare for a score of its own; that of all models would be too low for it."""
    rng, task, shares = np.random.default_rng(0), OneClass(2), []
    for _ in range(200):
        y = (rng.random(400) < rare).astype(int)
        z = 3 * (2 * y - 1) * 0.75 + 3 * rng.normal(size=400) + np.log(rare / (1 - rare))
        logits = np.stack([0 * z, z], axis=1)
        by = task.conformal(logits[:100], y[:100])
        shares.append(task.covered(task.region(logits[100:], 1.0, by), y[100:]).mean())
    assert np.mean(shares) > 0.895


def drawn(task, seed, n_models):
    """Logits and targets of a task, the logits off by noise."""
    rng = np.random.default_rng(seed)
    if isinstance(task, Number):
        z = rng.normal(size=n_models)
        y = np.exp(2 + z) if task.log else 2 + z
        return (z + 0.5 * rng.normal(size=n_models))[:, None], y
    if isinstance(task, OneClass):
        y = rng.integers(3, size=n_models)
        return 2 * np.eye(3)[y] + rng.normal(size=[n_models, 3]), y
    y = rng.integers(2, size=[n_models, 3])
    return 3.0 * y - 1.5 + 2 * rng.normal(size=y.shape), y


NUMBER = Number(mean=2.0, std=1.0)
TASKS = {
    "a number": NUMBER,
    "a wide number": Number(mean=2.0, std=1.0, log=True),
    "one class": OneClass(),
    "several classes": SeveralClasses(),
}


@pytest.mark.parametrize("which", TASKS)
def test_regions_cover_what_they_promise(which):
    task, temperature, shares = TASKS[which], 0.7, []
    for seed in range(60):
        logits, y = drawn(task, seed, 400)
        by = task.conformal(logits[:100], y[:100], temperature)
        region = task.region(logits[100:], temperature, by)
        shares.append(task.covered(region, y[100:]).mean())
    assert np.mean(shares) == pytest.approx(0.905, abs=0.012)


def test_an_interval_lies_around_its_number_on_the_scale_that_it_is_told_on():
    logits, y = drawn(NUMBER, 0, 200)
    for log in (False, True):
        task = Number(mean=2.0, std=0.5, log=log)
        by = task.conformal(logits, np.exp(y) if log else y)
        value = np.asarray(task.predictions(jnp.asarray(logits)))[:, 0]
        low, high = task.region(logits, 1.0, by).T
        if log:
            value, low, high = map(np.log, (value, low, high))
        np.testing.assert_allclose(value - low, high - value, rtol=1e-4)
        np.testing.assert_allclose(high - low, 2 * 0.5 * by.score, rtol=1e-4)


def test_a_class_is_in_the_set_if_its_probability_is_as_usual():
    """By the threshold of that class; a model that is like none of them has an empty set."""
    task = OneClass()
    by = conformal(np.linspace(0, 0.4, 60), np.repeat([0, 1], 30))
    logits = np.log([[0.98, 0.02], [0.5, 0.5], [0.01, 0.99]])
    least = 1 - by.scores(2)
    expected = np.exp(logits) >= least
    np.testing.assert_array_equal(task.region(logits, 1.0, by)[:, :, 1], expected)
    assert not expected[1].any()
    assert task.covered(task.region(logits, 1.0, by), np.array([0, 0, 0])).tolist() == [1, 0, 0]


def test_of_texts_nothing_is_promised():
    """Candidates are others each time."""
    assert Texts().conformal(np.zeros([50, 3]), np.zeros(50, int)) is None


@pytest.mark.parametrize("which", TASKS)
def test_a_prior_says_what_is_usual(which):
    """No constant answer has a lower loss."""
    task, (logits, y) = TASKS[which], drawn(TASKS[which], 1, 300)
    n_outputs = logits.shape[1]
    prior = task.prior(y, n_outputs)
    loss = task.mean_loss(np.tile(prior, [300, 1]), y)
    for change in 0.1 * np.concatenate([np.eye(n_outputs), -np.eye(n_outputs)]):
        assert task.mean_loss(np.tile(prior + change, [300, 1]), y) > loss


@pytest.mark.parametrize("which", TASKS)
def test_predictions_are_the_same_in_numpy(which):
    task, (logits, _) = TASKS[which], drawn(TASKS[which], 3, 50)
    expected = task.predictions(jnp.asarray(logits), 0.7)
    np.testing.assert_allclose(task.predicted(logits, 0.7), expected, rtol=1e-5)
