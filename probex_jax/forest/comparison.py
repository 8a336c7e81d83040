"""Predicted classes, and how what is predicted compares with what is stated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_LEAST_PROBABILITY = 1e-9

# What is stated of an attribute: a number, or classes.
StatedAttribute = float | tuple[str, ...]


@dataclass(frozen=True)
class Prediction:
    """One class that a model may have been trained on.

    Args:
      label: the class.
      text: its words.
      probability: calibrated.
    """

    label: str
    text: str
    probability: float


@dataclass(frozen=True)
class Comparison:
    """Predicted against stated classes.

    Args:
      n_right: number of classes on which both agree.
      n_classes: number of classes that the expert knows.
      n_known: number of stated classes among these; with 0 there is nothing to compare.
      missed: stated, but not predicted.
      extra: predicted, but not stated.
      unknown: stated, but unknown to the expert.
      surprise: -log of the probability of all stated classes together, or of the one stated class
        if the expert chooses among them.
      chosen: as of the expert.
    """

    n_right: int
    n_classes: int
    n_known: int
    missed: tuple[Prediction, ...]
    extra: tuple[Prediction, ...]
    unknown: tuple[str, ...]
    surprise: float
    chosen: str


@dataclass(frozen=True)
class AttributeComparison:
    """A predicted attribute against what is stated of it.

    Args:
      attribute: its name.
      stated: a number, or classes.
      within: whether the interval or set holds what is stated; None without one.
      right: whether just the stated classes are predicted; None for a number.
      off: predicted less stated number; None for classes.
    """

    attribute: str
    stated: StatedAttribute
    within: bool | None
    right: bool | None = None
    off: float | None = None


def predicted(predictions: Sequence[Prediction], chosen: str) -> tuple[Prediction, ...]:
    """The predicted classes.

    Args:
      predictions: of all classes, most probable first.
      chosen: "one" for the most probable class, "several" for those with probability >= 0.5.
    """
    if chosen == "one":
        return tuple(predictions[:1])
    return tuple(p for p in predictions if p.probability >= 0.5)


def compared(
    predictions: Sequence[Prediction], labels: Sequence[str], chosen: str
) -> Comparison | None:
    """Predicted against given classes; None if there is nothing to compare.

    Args:
      predictions: of all classes, most probable first.
      chosen: as for `predicted`.
      labels: classes of the model, by name or text.
    """
    if not labels or not predictions:
        return None
    said = {plain_class(label): label for label in labels}
    stated = {
        p.label for p in predictions if {plain_class(p.label), plain_class(p.text)} & said.keys()
    }
    answered = {p.label for p in predicted(predictions, chosen)}
    missed, extra = stated - answered, answered - stated
    known = {plain_class(name) for p in predictions for name in (p.label, p.text)}
    return Comparison(
        n_right=sum((p.label in stated) == (p.label in answered) for p in predictions),
        n_classes=len(predictions),
        n_known=len(stated),
        missed=tuple(p for p in predictions if p.label in missed),
        extra=tuple(p for p in predictions if p.label in extra),
        unknown=tuple(label for plain, label in said.items() if plain not in known),
        surprise=_surprise(predictions, stated, chosen),
        chosen=chosen,
    )


def _surprise(predictions: Sequence[Prediction], stated: set[str], chosen: str) -> float:
    if chosen == "one":
        sides = [sum(p.probability for p in predictions if p.label in stated)]
    else:
        sides = [p.probability if p.label in stated else 1 - p.probability for p in predictions]
    return -sum(math.log(max(side, _LEAST_PROBABILITY)) for side in sides)


def plain_class(label: str) -> str:
    """A class name without case and spacing."""
    return " ".join(label.replace("_", " ").casefold().split())
