"""Descriptions of models: predictions, and how they compare with what the files state."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from probex_jax.forest.router import Route
from probex_jax.forest.stated_facts import StatedFacts

_LEAST_PROBABILITY = 1e-9


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
class Neighbour:
    """A documented model with a similar representation.

    Args:
      id: its name in the index.
      similarity: cosine of the representations.
      text: what it was trained on, in words.
      path: of the model.
    """

    id: str
    similarity: float
    text: str
    path: str


@dataclass(frozen=True)
class ExpertFacts:
    """The expert behind predictions, and its accuracy.

    Args:
      hash: of the expert.
      layers: the layers it reads.
      encoder: name of its encoder.
      n_train: number of training models; None if its card does not say.
      accuracy: on test models, as {"value", "low", "high", "n_models", "chance"}; experts of
        earlier versions lack "chance"; None if not measured.
      auc: the macro AUC on test models in the same form; None if not measured.
      calibration_error: after calibration, by split.
      chosen: "several" if each class has its own probability, "one" if it chooses among them.
    """

    hash: str
    layers: tuple[str, ...]
    encoder: str
    n_train: int | None
    accuracy: Mapping[str, Any] | None
    calibration_error: Mapping[str, float]
    chosen: str
    auc: Mapping[str, Any] | None = None


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
    """

    n_right: int
    n_classes: int
    n_known: int
    missed: tuple[Prediction, ...]
    extra: tuple[Prediction, ...]
    unknown: tuple[str, ...]
    surprise: float


@dataclass(frozen=True)
class Description:
    """The description of a model.

    Args:
      id: its name.
      path: of the model.
      stated: what its own files state.
      route: its tree, or why it is unknown.
      root: the root of the tree, as given when the forest was grown; "" if unknown.
      predictions: all classes that the expert of the tree knows, most probable first; empty if the
        tree is unknown or has no expert.
      expert: made the predictions.
      neighbours: the nearest documented models; None without an index.
      stated_root: the ancestor that all training models of the tree state, or "".

    Example:
      >>> from probex_jax.forest import Prediction, Route
      >>> from probex_jax.forest.stated_facts import StatedFacts
      >>> said = StatedFacts((), "", "", "", "", "", False, parameters=9, dtype="F32", layers=1)
      >>> likely = (Prediction("cat", "cat", 0.9), Prediction("dog", "dog", 0.2))
      >>> found = Description("mine", "mine.safetensors", said, Route("cats"), "", likely)
      >>> found.tree, [prediction.text for prediction in found.predicted]
      ('cats', ['cat'])
    """

    id: str
    path: str
    stated: StatedFacts
    route: Route
    root: str = ""
    predictions: tuple[Prediction, ...] = ()
    expert: ExpertFacts | None = None
    neighbours: tuple[Neighbour, ...] | None = None
    stated_root: str = ""

    @property
    def tree(self) -> str:
        """Name of the tree; "" if it is unknown."""
        return self.route.tree

    @property
    def predicted(self) -> tuple[Prediction, ...]:
        """The predicted classes: those with probability >= 0.5, or the most probable one."""
        return predicted(self.predictions, "several" if self.expert is None else self.expert.chosen)

    @cached_property
    def comparison(self) -> Comparison | None:
        """Predicted against stated classes; None if either is missing."""
        return self.compared_with(self.stated.labels)

    def compared_with(self, labels: Sequence[str]) -> Comparison | None:
        """Predicted against given classes; None if there is nothing to compare.

        Args:
          labels: classes of the model, by name or text.
        """
        if self.expert is None:
            return None
        return compared(self.predictions, labels, self.expert.chosen)

    def as_json(self) -> dict[str, Any]:
        """The description as JSON values."""
        value = dataclasses.asdict(self)
        value["tree"] = self.tree
        value["predicted"] = [p.label for p in self.predicted]
        found = self.comparison
        value["comparison"] = None if found is None else dataclasses.asdict(found)
        return value


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
    said = {_plain(label): label for label in labels}
    stated = {p.label for p in predictions if {_plain(p.label), _plain(p.text)} & said.keys()}
    answered = {p.label for p in predicted(predictions, chosen)}
    missed, extra = stated - answered, answered - stated
    known = {_plain(name) for p in predictions for name in (p.label, p.text)}
    return Comparison(
        n_right=sum((p.label in stated) == (p.label in answered) for p in predictions),
        n_classes=len(predictions),
        n_known=len(stated),
        missed=tuple(p for p in predictions if p.label in missed),
        extra=tuple(p for p in predictions if p.label in extra),
        unknown=tuple(label for plain, label in said.items() if plain not in known),
        surprise=_surprise(predictions, stated, chosen),
    )


def _surprise(predictions: Sequence[Prediction], stated: set[str], chosen: str) -> float:
    if chosen == "one":
        sides = [sum(p.probability for p in predictions if p.label in stated)]
    else:
        sides = [p.probability if p.label in stated else 1 - p.probability for p in predictions]
    return -sum(math.log(max(side, _LEAST_PROBABILITY)) for side in sides)


def _plain(label: str) -> str:
    """A class name without case and spacing."""
    return " ".join(label.replace("_", " ").casefold().split())
