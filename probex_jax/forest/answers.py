"""What logits of an expert say, as answers of descriptions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from probex_jax.experts import Card
from probex_jax.fitting import Number
from probex_jax.forest.description import Answer, ExpertFacts, Prediction, Quantity


class Asked(NamedTuple):
    """One thing that an expert is asked.

    Args:
      card: of the expert; of a joint one that of a part.
      outputs: its columns of the logits.
      facts: about it.
    """

    card: Card
    outputs: slice
    facts: ExpertFacts


def answered(name: str, asked: Asked, logits_NY: np.ndarray) -> list[Answer]:
    """The answers for N models.

    Args:
      name: of what is asked.
      asked: it.
      logits_NY: of the whole expert.
    """
    card, own_NY = asked.card, logits_NY[:, asked.outputs]
    by = card.conformal
    region = None if by is None else card.task.region(own_NY, card.temperature, by)
    p_NY = card.task.predicted(own_NY, card.temperature)
    if isinstance(card.task, Number):
        return _numbers(name, asked, p_NY[:, 0], region)
    likely_NY = None if region is None else region[:, :, 1]
    return [
        Answer(
            _predictions(card, p_Y),
            asked.facts,
            name,
            likely=None if likely_NY is None else _named(card, p_Y, likely_NY[row]),
            coverage=None if by is None else by.coverage,
        )
        for row, p_Y in enumerate(p_NY)
    ]


def _numbers(
    name: str, asked: Asked, value_N: np.ndarray, region_N2: np.ndarray | None
) -> list[Answer]:
    by = asked.card.conformal
    if by is None or region_N2 is None:  # too few models for an interval
        region_N2 = np.stack([np.full_like(value_N, -np.inf), np.full_like(value_N, np.inf)], 1)
    coverage = 1.0 if by is None else by.coverage
    return [
        Answer((), asked.facts, name, Quantity(float(value), float(low), float(high), coverage))
        for value, (low, high) in zip(value_N, region_N2, strict=True)
    ]


def _predictions(card: Card, p_Y: np.ndarray) -> tuple[Prediction, ...]:
    classes, words = card.classes, card.words
    return tuple(
        Prediction(classes[y], words.get(classes[y], classes[y]), float(p_Y[y]))
        for y in np.argsort(-p_Y, kind="stable")
    )


def _named(card: Card, p_Y: np.ndarray, likely_Y: np.ndarray) -> tuple[str, ...]:
    """The likely classes, the most probable first."""
    return tuple(card.classes[y] for y in np.argsort(-p_Y, kind="stable") if likely_Y[y])
