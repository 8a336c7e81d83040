"""The images: classes, values, and that no model sees a held-back image in any rotation."""

import importlib
import sys

import numpy as np
import pytest

from probex_jax.errors import ProbexError
from probex_jax.zoo.miniature import CLASSES, data


def test_rotated_classes_are_the_upright_ones_turned():
    digits = data.load()
    assert digits.train.shape == (20, 140, 8, 8)
    assert digits.held_back.shape == (20, 34, 8, 8)
    assert CLASSES[3] == "three"
    assert CLASSES[13] == "rotated three"
    np.testing.assert_array_equal(digits.train[13, 5], np.rot90(digits.train[3, 5]))
    assert digits.train.min() == -1
    assert digits.train.max() == 1


def test_held_back_images_are_in_no_training_set():
    digits = data.load()
    trained = {image.tobytes() for image in digits.train.reshape(-1, 8, 8)}
    assert not any(image.tobytes() in trained for image in digits.held_back.reshape(-1, 8, 8))


def test_enlarging_repeats_pixels():
    small, large = data.load(8).train[4, 2], data.load(16).train[4, 2]
    np.testing.assert_array_equal(large[::2, 1::2], small)
    np.testing.assert_array_equal(large[1::2, ::2], small)


def test_only_loading_needs_scikit_learn(monkeypatch):
    for name in ("sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, data.__name__)
    fresh = importlib.import_module(data.__name__)
    with pytest.raises(ProbexError, match="pip install scikit-learn"):
        fresh.load()
