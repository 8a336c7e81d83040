"""Temperatures and the calibration error: against truth that is known, and slow references."""

import numpy as np
import pytest

from probex_jax.fitting import Number, OneClass, SeveralClasses, calibration_error
from probex_jax.fitting.calibration import FACTORS, best_factor, seen_offset


def task_of(y):
    return SeveralClasses() if np.ndim(y) == 2 else OneClass()


def best_temperature(logits, y):
    return task_of(y).best_temperature(logits, y)


def error_of(p, y):
    return calibration_error(*task_of(y).promises(p, y))


def softmax(logits):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def sigmoid(logits):
    return 0.5 + 0.5 * np.tanh(np.asarray(logits, np.float64) / 2)


def drawn_classes(logits, rng):
    """Targets [N, Y] that the logits are true probabilities of."""
    return (rng.uniform(size=logits.shape) < sigmoid(logits)).astype(np.float32)


def drawn_choices(logits, rng):
    """Targets [N] that the logits are true probabilities of."""
    below = np.cumsum(softmax(logits), axis=1) < rng.uniform(size=(len(logits), 1))
    return np.minimum(below.sum(axis=1), logits.shape[1] - 1).astype(np.int32)


@pytest.mark.parametrize("draw", [drawn_classes, drawn_choices])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_the_temperature_that_logits_were_made_with_is_found(draw, temperature):
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(20_000, 5))
    y = draw(logits, rng)
    assert best_temperature(temperature * logits, y) == pytest.approx(temperature, rel=0.04)


@pytest.mark.parametrize("margin", [0.3, 30.0])
@pytest.mark.parametrize(("n_right", "n_wrong"), [(50, 50), (1, 9)])
def test_classes_told_without_a_mistake_are_as_sure_as_their_number_allows(
    margin, n_right, n_wrong
):
    y = np.repeat([1.0, 0.0], [n_right, n_wrong])[:, None]
    logits = margin * (2 * y - 1)
    temperature = best_temperature(logits, y)
    assert np.isfinite(temperature)
    p = sigmoid(margin / temperature)
    # One temperature for both kinds: the mean of what each may claim.
    claims = [(n_right + 1) / (n_right + 2)] * n_right + [(n_wrong + 1) / (n_wrong + 2)] * n_wrong
    assert p == pytest.approx(np.mean(claims), abs=1e-4)


@pytest.mark.parametrize("n_models", [1, 40])
def test_choices_told_without_a_mistake_are_as_sure_as_their_number_allows(n_models):
    y = np.arange(n_models) % 4
    logits = np.where(np.arange(4) == y[:, None], 9.0, -9.0)
    p = softmax(logits / best_temperature(logits, y)).max(axis=1)
    np.testing.assert_allclose(p, (n_models + 1) / (n_models + 2), atol=1e-4)


def test_candidates_that_nobody_would_take_do_not_count():
    y = np.arange(40) % 4
    logits = np.where(np.arange(4) == y[:, None], 9.0, -1e4)
    logits[np.arange(40), (y + 1) % 4] = -9.0
    p = softmax(logits / best_temperature(logits, y)).max(axis=1)
    np.testing.assert_allclose(p, 41 / 42, atol=1e-4)


@pytest.mark.parametrize(
    "y", [np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1]), np.ones([2, 2])]
)
@pytest.mark.parametrize("logits", [np.zeros([2, 2]), np.full([2, 2], 3e4), [[-5.0, 5], [5, -5]]])
def test_no_logits_ask_for_a_temperature_that_is_none(logits, y):
    temperature = best_temperature(np.asarray(logits, np.float32), y)
    assert 1e-5 < temperature < 1e5


def slow_calibration_error(p, y, n_bins=15):
    """By its definition, entry by entry."""
    if y.ndim == 2:
        entries = [
            (float(p[n, c]), float(y[n, c])) for n in range(len(y)) for c in range(len(p[0]))
        ]
    else:
        entries = [(float(max(p[n])), float(np.argmax(p[n]) == y[n])) for n in range(len(y))]
    total = 0.0
    for number in range(n_bins):
        low, high = number / n_bins, (number + 1) / n_bins
        inside = [e for e in entries if low <= e[0] < high or (high == 1 and e[0] == 1)]
        if inside:
            gap = sum(e[0] for e in inside) / len(inside) - sum(e[1] for e in inside) / len(inside)
            total += len(inside) / len(entries) * abs(gap)
    return total


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_the_calibration_error_is_that_of_its_definition(seed, scale):
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(70, 6))
    classes, choices = rng.integers(0, 2, size=(70, 6)), rng.integers(0, 6, size=70)
    for p, y in ((sigmoid(logits), classes), (softmax(logits), choices)):
        assert error_of(p, y) == pytest.approx(slow_calibration_error(p, y), abs=1e-12)


def test_the_calibration_error_at_its_ends():
    y = np.array([[1.0, 0.0]])
    assert error_of(np.array([[1.0, 0.0]]), y) == 0
    assert error_of(np.array([[0.0, 1.0]]), y) == 1
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(50_000, 4))
    assert error_of(sigmoid(logits), drawn_classes(logits, rng)) < 0.01
    assert error_of(sigmoid(5 * logits), drawn_classes(logits, rng)) > 0.1


def test_a_number_is_as_uncertain_as_its_errors():
    rng = np.random.default_rng(0)
    y = 5 + 2 * rng.normal(size=20_000)
    task = Number().fitted(y)
    logits = task.encoded(y)[:, None] + 0.3 * rng.normal(size=(20_000, 1)).astype(np.float32)
    temperature = task.best_temperature(logits, y)
    value_std = np.asarray(task.predictions(logits, temperature))
    assert np.mean(value_std[:, 1]) == pytest.approx(0.6, rel=0.02)
    assert np.std(value_std[:, 0] - y) == pytest.approx(0.6, rel=0.02)
    assert calibration_error(*task.promises(value_std, y)) < 0.01
    assert calibration_error(*task.promises(value_std * [1, 0.3], y)) > 0.3


def test_the_offset_of_seen_classes_is_the_best_of_all():
    """Against all offsets tried one by one, by the accuracies that the logits then have."""
    rng = np.random.default_rng(0)
    seen, new = rng.integers(4, 10, 60), rng.integers(0, 4, 40)
    logits = [3 * np.eye(10)[y] + rng.normal(size=(len(y), 10)) for y in (seen, new)]
    for each in logits:
        each[:, 4:] += 2.0  # training raised them

    def harmonic(offset):
        moved = [each - np.where(np.arange(10) < 4, 0.0, offset) for each in logits]
        accuracies = [
            np.mean(each.argmax(axis=1) == y) for each, y in zip(moved, (seen, new), strict=True)
        ]
        return 2 / sum(1 / max(accuracy, 1e-9) for accuracy in accuracies)

    offset = seen_offset((logits[0], seen), (logits[1], new), 4)
    assert harmonic(offset) == pytest.approx(max(map(harmonic, np.linspace(-10, 10, 4001))))
    assert harmonic(offset) > harmonic(0.0) + 0.1
    assert 1.0 < offset < 3.0
    hopeless = np.tile(np.arange(3.0), (2, 1)), np.array([0, 0])
    assert seen_offset(hopeless, hopeless, 2) == 0.0


@pytest.mark.parametrize("best", [0.01, 0.1, 0.13, 1.0, 7.3, 55.0, 100.0, 1e4])
@pytest.mark.parametrize("near", [None, 0.1, 0.9, 7.0, 30.0, 100.0, 1e3])
def test_the_best_factor_is_found_from_wherever_the_search_begins(best, near):
    def loss(factor):
        return abs(np.log(factor / best))

    losses = [loss(factor) for factor in FACTORS]
    factor, lowest = best_factor(loss, near)
    assert factor == FACTORS[np.argmin(losses)]
    assert lowest == min(losses)


def test_a_search_that_begins_beside_the_best_factor_asks_little():
    asked = []
    best_factor(lambda factor: asked.append(factor) or (factor - 3.0) ** 2, near=3.1)
    assert len(asked) <= 5
