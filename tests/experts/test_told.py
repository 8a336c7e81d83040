"""Whether weights tell something: by the loss or by the accuracy, beyond chance."""

import numpy as np
import pytest

from probex_jax.experts.evaluation import Answers, is_told
from probex_jax.fitting import Number, OneClass, SeveralClasses

N = 300


def answers(which, seed, signal):
    """Answers that a signal makes, and the task."""
    rng = np.random.default_rng(seed)
    if which == "a number":
        y = rng.normal(size=N)
        logits = signal * y + 0.5 * rng.normal(size=N)
        share = signal / (signal**2 + 0.25)  # as a regression shrinks it
        return Number(), Answers(share * logits[:, None], y)
    if which == "several classes":
        y = rng.integers(2, size=[N, 4])
        return SeveralClasses(), Answers(signal * (2 * y - 1) + 0.1 * rng.normal(size=y.shape), y)
    y = rng.integers(3, size=N)
    return OneClass(), Answers(signal * np.eye(3)[y] + 0.1 * rng.normal(size=[N, 3]), y)


@pytest.mark.parametrize("which", ["a number", "several classes", "one class"])
def test_what_there_is_is_told_and_noise_is_not(which):
    noise, told = [], []
    for seed in range(40):
        task, found = answers(which, seed, 0.0)
        noise.append(is_told(task, found, found.y))
        task, found = answers(which, seed, 0.6)
        told.append(is_told(task, found, found.y))
    assert np.mean(noise) <= 0.05
    assert np.mean(told) >= 0.95


def test_a_rare_class_is_told_by_the_loss_where_the_commonest_answer_stays_right():
    rng = np.random.default_rng(0)
    y = (rng.uniform(size=N) < 0.15).astype(int)
    logits = np.stack([np.zeros(N), np.where(y == 1, -0.3, -3.0)], axis=1)
    assert (logits.argmax(axis=1) == 0).all()
    assert is_told(OneClass(), Answers(logits, y), y)


def test_many_classes_are_told_by_the_accuracy_where_probabilities_are_too_sure():
    rng = np.random.default_rng(0)
    y = rng.integers(8, size=N)
    guessed = np.where(rng.uniform(size=N) < 0.4, y, rng.integers(8, size=N))
    logits = 20.0 * np.eye(8)[guessed]
    assert OneClass().mean_loss(logits, y) > np.log(8)
    assert is_told(OneClass(), Answers(logits, y), y)
