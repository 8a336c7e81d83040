"""What is said of a model that nobody described: predictions, and what its file says, compared."""

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
      text: the words for it.
      probability: calibrated.
    """

    label: str
    text: str
    probability: float


@dataclass(frozen=True)
class Neighbour:
    """A documented model whose weights are represented alike.

    Args:
      id: its name in the index.
      similarity: cosine of the representations.
      text: what it was trained on, in words.
      path: where it is.
    """

    id: str
    similarity: float
    text: str
    path: str


@dataclass(frozen=True)
class ExpertFacts:
    """Which expert answered, and how far it may be believed.

    Args:
      hash: of the expert.
      layers: what it read.
      encoder: its name.
      n_train: models it was trained on; None where its card does not say.
      accuracy: on test models, as {"value", "low", "high", "n_models", "chance"}, without the last
        of an expert of an earlier version; None where not measured.
      calibration_error: after calibration, by split.
      chosen: "several" where it gives a probability to each class for itself, "one" where it
        chooses among them.
    """

    hash: str
    layers: tuple[str, ...]
    encoder: str
    n_train: int | None
    accuracy: Mapping[str, Any] | None
    calibration_error: Mapping[str, float]
    chosen: str


@dataclass(frozen=True)
class Comparison:
    """Predicted against stated.

    Args:
      n_right: classes of which both say the same.
      n_classes: how many the expert knows.
      n_known: how many of the stated ones are among these; of none, nothing is to compare.
      missed: stated, but not predicted.
      extra: predicted, but not stated.
      unknown: stated, but no class that the expert knows.
      surprise: -log of the probability of what is stated, of all classes together; of the one
        stated class where the expert chooses among them.
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
    """What was found out about one model.

    Args:
      id: its name.
      path: where it is.
      stated: what its own files say.
      route: its tree, or why that is unknown.
      root: name of the tree's root, as whoever grew the forest gave it; "" where unknown.
      predictions: every class that the tree's expert knows, the most probable first; none where
        the tree is unknown or has no expert.
      expert: who predicted.
      neighbours: the nearest documented models; None where no index was given.
      stated_root: what files of the tree's training models agree on as their ancestor; "" where
        they do not, or do not say.

    Example:
      >>> from probex_jax.forest import Prediction, Route
      >>> from probex_jax.forest.stated_facts import StatedFacts
      >>> said = StatedFacts((), "", "", "", "", "", is_lora=False, parameters=9, dtype="F32", layers=1)
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
        """Name of the model's tree, "" for an unknown one."""
        return self.route.tree

    @property
    def predicted(self) -> tuple[Prediction, ...]:
        """What it was trained on: classes at probability one half or more, or the likeliest one."""
        return predicted(self.predictions, "several" if self.expert is None else self.expert.chosen)

    @cached_property
    def comparison(self) -> Comparison | None:
        """Predicted against stated; None where either says nothing."""
        return self.compared_with(self.stated.labels)

    def compared_with(self, labels: Sequence[str]) -> Comparison | None:
        """Predicted against labels from elsewhere; None where there is nothing to compare.

        Args:
          labels: the classes that the model is said to be of, by their names or words.
        """
        if self.expert is None:
            return None
        return compared(self.predictions, labels, self.expert.chosen)

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        value = dataclasses.asdict(self)
        value["tree"] = self.tree
        value["predicted"] = [p.label for p in self.predicted]
        found = self.comparison
        value["comparison"] = None if found is None else dataclasses.asdict(found)
        return value


def predicted(predictions: Sequence[Prediction], chosen: str) -> tuple[Prediction, ...]:
    """What a model was trained on.

    Args:
      predictions: of every class, the most probable first.
      chosen: "one" for the likeliest, "several" for those at probability one half or more.
    """
    if chosen == "one":
        return tuple(predictions[:1])
    return tuple(p for p in predictions if p.probability >= 0.5)


def compared(
    predictions: Sequence[Prediction], labels: Sequence[str], chosen: str
) -> Comparison | None:
    """Predicted against labels from elsewhere; None where there is nothing to compare.

    Args:
      predictions, chosen: as `predicted` takes them.
      labels: the classes that the model is said to be of, by their names or words.
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
    """A class name without what nobody means by it."""
    return " ".join(label.replace("_", " ").casefold().split())
