"""Descriptions of models: predictions, and how they compare with what the files state."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from probex_jax.forest.comparison import (
    AttributeComparison,
    Comparison,
    Prediction,
    StatedAttribute,
    compared,
    plain_class,
    predicted,
)
from probex_jax.forest.relatives import Relatives
from probex_jax.forest.router import Route
from probex_jax.forest.soundness import Soundness
from probex_jax.forest.stated_facts import StatedFacts

_SHOWN_NAMES = 3


@dataclass(frozen=True)
class Quantity:
    """A number that a model is predicted to have.

    Args:
      value: the prediction.
      low: the lower end of its conformal interval.
      high: the upper end.
      coverage: the share of models whose number is meant to lie in their interval, such as 0.9.
    """

    value: float
    low: float
    high: float
    coverage: float


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
      accuracy: on test models, as {"value", "low", "high", "n_models", "chance"}, of numbers the
        R²; experts of earlier versions lack "chance"; None if not measured.
      auc: the macro AUC on test models in the same form; None if not measured.
      calibration_error: after calibration, by split.
      chosen: "several" if each class has its own probability, "one" if it chooses among them,
        "number" if it predicts a number.
      coverage: the share of test models whose truth lies in their interval or set, as {"value",
        "low", "high", "n_models"}; None if not measured.
    """

    hash: str
    layers: tuple[str, ...]
    encoder: str
    n_train: int | None
    accuracy: Mapping[str, Any] | None
    calibration_error: Mapping[str, float]
    chosen: str
    auc: Mapping[str, Any] | None = None
    coverage: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class RankedTags:
    """Free tags that a model probably has, by an expert that ranks a vocabulary of them.

    Args:
      shown: the most probable first; may be none.
      n_tags: of the vocabulary.
      wrong: the expected share of wrong tags among those shown, at most.
    """

    shown: tuple[Prediction, ...]
    n_tags: int
    wrong: float


@dataclass(frozen=True)
class Answer:
    """What one expert of the tree predicts of a model.

    Args:
      predictions: all classes that the expert knows, most probable first; of a number none.
      expert: made the predictions.
      label_set: the attribute that is predicted, such as "gain"; "" if it has no name.
      quantity: the predicted number, if the attribute is one.
      likely: the classes of the conformal set, which may be empty: those that cannot be ruled out;
        None without such sets.
      coverage: the share of models whose classes are meant to be in their set.
      tags: of an expert that ranks tags, those shown; None of others.
    """

    predictions: tuple[Prediction, ...]
    expert: ExpertFacts
    label_set: str = ""
    quantity: Quantity | None = None
    likely: tuple[str, ...] | None = None
    coverage: float | None = None
    tags: RankedTags | None = None

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

    def beside(self, stated: StatedAttribute) -> AttributeComparison | None:
        """The prediction against what is stated of the attribute; None if that is no such value.

        Args:
          stated: a number, also one written as a class, for a number; otherwise classes.
        """
        if self.quantity is not None:
            try:
                number = float(stated[0] if isinstance(stated, tuple) else stated)
            except (ValueError, IndexError):
                return None
            holds = self.quantity.low <= number <= self.quantity.high
            off = self.quantity.value - number
            return AttributeComparison(self.label_set, number, holds, off=off)
        if not isinstance(stated, tuple):
            return None
        named = {plain_class(p.text): p.label for p in self.predictions}
        named |= {plain_class(p.label): p.label for p in self.predictions}
        known = {named.get(plain_class(label), label) for label in stated}
        right = known == {p.label for p in self.predicted}
        within = None if self.likely is None else known <= set(self.likely)
        return AttributeComparison(self.label_set, stated, within, right)


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
      untold: the attributes of the tree that the weights do not tell; they have no answer.
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
    untold: tuple[str, ...] = ()
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

    @cached_property
    def attribute_comparisons(self) -> tuple[AttributeComparison, ...]:
        """Each predicted attribute of which something is stated, against that."""
        stated = self.stated.attributes
        said = ((a, stated.get(a.label_set, self._in_files(a))) for a in self.answers)
        found = (None if value is None else answer.beside(value) for answer, value in said)
        return tuple(one for one in found if one is not None)

    def _in_files(self, answer: Answer) -> float | None:
        """What the model's own files state under the name of a predicted number."""
        value = getattr(self.stated.said, answer.label_set, None)
        is_number = answer.quantity is not None and isinstance(value, int | float)
        return float(value) if is_number and value else None

    def as_json(self) -> dict[str, Any]:
        """The description as JSON; `predictions` and `expert` are of the first answer.

        Where an interval has no end, that is None.
        """
        value = dataclasses.asdict(self)
        value["tree"] = self.tree
        for answer, shown in zip(self.answers, value["answers"], strict=True):
            shown["title"] = answer.title
            shown["predicted"] = [p.label for p in answer.predicted]
            for end in ("low", "high") if answer.quantity is not None else ():
                if not math.isfinite(shown["quantity"][end]):
                    shown["quantity"][end] = None
        first = value["answers"][0] if self.answers else {"predictions": [], "expert": None}
        value |= {name: first[name] for name in ("predictions", "expert")}
        value["predicted"] = [p.label for p in self.predicted]
        found = self.comparison
        value["comparison"] = None if found is None else dataclasses.asdict(found)
        value["attribute_comparisons"] = list(map(dataclasses.asdict, self.attribute_comparisons))
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
