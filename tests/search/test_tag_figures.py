"""Figures of ranked tags, counted by hand."""

import numpy as np
import pytest

from probex_jax import ProbexError
from probex_jax.search.tag_figures import tag_figures

RIGHT = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
SCORES = np.array([[0.9, 0.8, 0.7], [0.6, 0.1, 0.0], [0.1, 0.2, 0.0], [0.0, 0.0, 0.9]])


def found(cut, scores=SCORES):
    return {
        key: (s.value, s.n_models, chance)
        for key, _, s, chance in tag_figures(scores, scores >= cut, RIGHT)
    }


def test_the_figures_are_those_counted():
    figures = found(0.65)  # three tags for one model, of which two are right, and a wrong one
    assert figures["precision"] == pytest.approx((1 / 3, 2, 1 / 2))
    assert figures["recall"] == pytest.approx((1 / 3, 3, 1 / 2))
    assert figures["precision_at_1"] == pytest.approx((1 / 3, 3, 2 / 3))


def test_chance_shows_as_many_tags():
    figures = found(0.5)  # five for four models: the two commonest, less often than always
    assert figures["precision"] == pytest.approx((2 / 9, 3, 1 / 2))
    assert figures["recall"] == pytest.approx((1 / 3, 3, 1.25 / 2))


def test_where_nothing_is_shown_there_is_no_precision():
    figures = found(1.0)
    assert "precision" not in figures
    assert figures["recall"] == (0, 3, 0)


def test_models_without_any_of_the_tags_are_refused():
    with pytest.raises(ProbexError):
        list(tag_figures(SCORES, SCORES >= 0, np.zeros_like(RIGHT)))
