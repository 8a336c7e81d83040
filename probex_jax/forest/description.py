"""Descriptions of models: predictions, and how they compare with what the files state."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from probex_jax.forest.relatives import Relatives
from probex_jax.forest.router import Route
from probex_jax.forest.soundness import Soundness
from probex_jax.forest.stated_facts import StatedFacts

_LEAST_PROBABILITY = 1e-9
_SHOWN_NAMES = 3


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
class Answer:
    """What one expert of the tree predicts of a model.

    Args:
      predictions: all classes that the expert knows, most probable first.
      expert: made the predictions.
      label_set: what the classes are about, such as "gain"; "" if that has no name.
    """

    predictions: tuple[Prediction, ...]
    expert: ExpertFacts
    label_set: str = ""

    @property
    def title(self) -> str:
        """The label set, or its first classes."""
        return self.label_set or abbreviated(sorted(p.text for p in self.predictions))

    @property
    def chooses_one(self) -> bool:
        """Whether the classes exclude each other."""
        return self.expert.chosen == "one"

    @property
    def predicted(self) -> tuple[Prediction, ...]:
        """The most probable class, or those with probability >= 0.5 if there may be several."""
        return predicted(self.predictions, self.expert.chosen)

    def compared_with(self, labels: Sequence[str]) -> Comparison | None:
        """Predicted against given classes; None if there is nothing to compare.

        Args:
          labels: classes of the model, by name or text.
        """
        return compared(self.predictions, labels, self.expert.chosen)


@dataclass(frozen=True)
class Description:
    """The description of a model.

    Args:
      id: its name.
      path: of the model.
      stated: what its own files state.
      route: its tree, or why it is unknown.
      root: the root of the tree, as given when the forest was grown; "" if unknown.
      answers: of the experts of the tree, one for each label set; empty if the tree is unknown or
        has no expert.
      neighbours: the nearest documented models; None without an index.
      stated_root: the ancestor that all training models of the tree state, or "".
      relatives: its parents and copies; None without a lineage that knows it.
      soundness: what is unusual about it; None if it was not compared with the models of a tree.

    Example:
      >>> from probex_jax.forest import Prediction, Route
      >>> from probex_jax.forest.stated_facts import StatedFacts
      >>> said = StatedFacts((), "", "", "", "", "", False, parameters=9, dtype="F32", layers=1)
      >>> likely = (Prediction("cat", "cat", 0.9), Prediction("dog", "dog", 0.2))
      >>> answer = Answer(likely, ExpertFacts("", (), "", 9, None, {}, "several"), "animals")
      >>> found = Description("mine", "mine.safetensors", said, Route("cats"), "", (answer,))
      >>> found.tree, [prediction.text for prediction in found.predicted]
      ('cats', ['cat'])
    """

    id: str
    path: str
    stated: StatedFacts
    route: Route
    root: str = ""
    answers: tuple[Answer, ...] = ()
    neighbours: tuple[Neighbour, ...] | None = None
    stated_root: str = ""
    relatives: Relatives | None = None
    soundness: Soundness | None = None

    @property
    def tree(self) -> str:
        """Name of the tree; "" if it is unknown."""
        return self.route.tree

    @property
    def predictions(self) -> tuple[Prediction, ...]:
        """Of the first answer; empty if there is none."""
        return self.answers[0].predictions if self.answers else ()

    @property
    def expert(self) -> ExpertFacts | None:
        """Of the first answer."""
        return self.answers[0].expert if self.answers else None

    @property
    def predicted(self) -> tuple[Prediction, ...]:
        """The predicted classes of all answers."""
        return tuple(p for answer in self.answers for p in answer.predicted)

    @cached_property
    def comparison(self) -> Comparison | None:
        """Predicted against stated classes, as `compared_with`."""
        return self.compared_with(self.stated.labels)

    def compared_with(self, labels: Sequence[str]) -> Comparison | None:
        """Predicted against given classes, by the answer that knows most of them.

        Args:
          labels: classes of the model, by name or text.

        Returns:
          The comparison; None if there is nothing to compare.
        """
        found = [c for c in (answer.compared_with(labels) for answer in self.answers) if c]
        return max(found, key=lambda comparison: comparison.n_known, default=None)

    def as_json(self) -> dict[str, Any]:
        """The description as JSON; `predictions` and `expert` are of the first answer."""
        value = dataclasses.asdict(self)
        value["tree"] = self.tree
        for answer, shown in zip(self.answers, value["answers"], strict=True):
            shown["title"] = answer.title
            shown["predicted"] = [p.label for p in answer.predicted]
        first = value["answers"][0] if self.answers else {"predictions": [], "expert": None}
        value |= {name: first[name] for name in ("predictions", "expert")}
        value["predicted"] = [p.label for p in self.predicted]
        found = self.comparison
        value["comparison"] = None if found is None else dataclasses.asdict(found)
        return value


def abbreviated(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are.

    Example:
      >>> abbreviated(["amp", "pedal"]), abbreviated("abcdefg")
      ('amp, pedal', 'a, b, c and 4 more')
    """
    shown = names if len(names) <= _SHOWN_NAMES + 1 else names[:_SHOWN_NAMES]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


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
        chosen=chosen,
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
